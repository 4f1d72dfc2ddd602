"""Findings are those of a definition written out, and a recording takes 50 bytes."""

from collections import defaultdict

import numpy as np
import pytest

from asr_jax.audio.levels import Levels
from asr_jax.survey.findings import findings
from asr_jax.survey.gathered import MOST_LISTED, Survey
from asr_jax.survey.page import render_data_page
from asr_jax.survey.rows import ROW, rate_deviations, repeated_audio, row_bytes
from asr_jax.types import Skipped, Utterance

LEVELS = Levels(
    rate_hz=16_000,
    channels=1,
    rms=0.1,
    peak=0.5,
    clipped=0.0,
    leading_seconds=0.5,
    trailing_seconds=0.25,
    digest=bytes(16),
)


def survey_of(levels: list[Levels], seconds: float = 2.0) -> Survey:
    survey = Survey()
    for one in levels:
        survey.add(seconds, one)
    return survey


def test_a_recording_takes_fifty_bytes_and_keeps_its_figures():
    digest = bytes(range(16))
    row = np.frombuffer(row_bytes(2.4, LEVELS._replace(digest=digest)), ROW)[0]
    assert ROW.itemsize == 50
    assert row["digest"].tobytes() == digest
    kept = [row[name].item() for name in ROW.names[:-1]]
    assert kept == pytest.approx([2.4, 0.1, 0.5, 0.0, 0.5, 0.25, 16_000, 1])
    assert row["seconds"] == 2.4


@pytest.mark.parametrize("recordings, different_ones", [(1, 1), (2, 1), (300, 40), (300, 299)])
def test_groups_are_those_of_a_loop(recordings, different_ones):
    random = np.random.default_rng(recordings + different_ones)
    digests = random.bytes(16 * different_ones)
    picked = random.integers(different_ones, size=recordings)
    levels = [LEVELS._replace(digest=digests[16 * n : 16 * n + 16]) for n in picked]
    texts = random.integers(2, size=recordings)
    groups = defaultdict(list)
    for number, digest in enumerate(picked):
        groups[digest].append(number)
    repeated = [group for group in groups.values() if len(group) > 1]
    several = [group for group in repeated if len(set(texts[group])) > 1]
    one = [group for group in repeated if len(set(texts[group])) == 1]
    for found, expected in zip(repeated_audio(survey_of(levels).rows, texts), (several, one)):
        listed = [(n, place) for place, group in enumerate(expected, 1) for n in group]
        assert list(zip(found.numbers, found.groups)) == listed


def test_the_worst_are_listed_and_all_are_counted():
    random = np.random.default_rng(0)
    clipped = random.permutation(np.linspace(0, 0.01, 500))
    levels = [
        LEVELS._replace(clipped=float(part), digest=n.to_bytes(16, "big"))
        for n, part in enumerate(clipped)
    ]
    (found,) = findings(survey_of(levels).rows, np.full(500, 20.0), np.arange(500))
    assert (found.anchor, found.count) == ("clipped", int((clipped > 2e-4).sum()))
    worst = np.argsort(-clipped)[:MOST_LISTED]
    assert [number for number, _ in found.listed] == worst.tolist()
    assert found.listed[0][1] == "1.00 % of samples"


def test_deviations_are_those_of_the_definition():
    random = np.random.default_rng(1)
    seconds, characters = random.uniform(1, 9, 40), random.integers(5, 90, 40).astype(float)
    survey = Survey()
    for one in seconds:
        survey.add(float(one), LEVELS)
    logarithms = np.log(characters / (seconds - 0.75))
    distances = logarithms - np.median(logarithms)
    expected = distances / (1.4826 * np.median(np.abs(distances)))
    assert rate_deviations(survey.rows, characters) == pytest.approx(expected, rel=1e-6)


def test_what_is_left_out_is_counted_and_only_the_first_of_a_kind_can_be_played():
    survey = Survey()
    for n in range(100):
        recording = Utterance(f"u{n}", __file__, "", 1.0)
        survey.leave_out(Skipped(f"u{n}", f"longer than 1 s: {n} s"), recording)
        survey.leave_out(Skipped(f"lost{n}", "no such file"), None)
    assert len(survey.left_out) == 200 and len(survey.left_out_recordings) == MOST_LISTED
    asked = []
    page = render_data_page("none", [], survey, "", lambda one: asked.append(one.id))
    assert "200 recordings are left out" in page and len(asked) == MOST_LISTED
    assert page.count("longer than 1 s") == page.count("no such file") == MOST_LISTED
