"""Groups of words cover a recording's words once, in order, within the longest length."""

import numpy as np
import pytest

from asr_jax.decoding.word_groups import MARGIN_SECONDS, short_parts, word_groups
from asr_jax.types import Word


def spoken(*times: tuple[float, float]) -> list[Word]:
    return [Word(f"W{n}", start, end, 0.5 + n / 100) for n, (start, end) in enumerate(times)]


@pytest.mark.parametrize("seed", range(20))
def test_groups_hold_all_words_and_are_short_enough(seed):
    rng = np.random.default_rng(seed)
    gaps, lengths = rng.exponential(0.6, 200), rng.uniform(0.05, 0.9, 200)
    starts = np.cumsum(gaps + np.concatenate([[0], lengths[:-1]]))
    words = spoken(*zip(starts.tolist(), (starts + lengths).tolist()))
    duration = words[-1].end_seconds + 3.0
    groups = word_groups(words, duration_seconds=duration, max_seconds=12.0)
    assert [word for group in groups for word in group.words] == words
    for group in groups:
        assert group.end_seconds - group.start_seconds <= 12.0
        assert group.start_seconds <= group.words[0].start_seconds + 0.0005
        assert group.words[-1].end_seconds <= group.end_seconds + 0.0005
        assert group.confidence == pytest.approx(np.mean([w.confidence for w in group.words]))
    for one, following in zip(groups, groups[1:]):
        assert one.end_seconds <= following.start_seconds + 0.001
    assert duration >= groups[-1].end_seconds


def test_a_short_recording_is_one_group_from_start_to_end():
    words = spoken((1.0, 1.2), (4.0, 4.5))
    (group,) = word_groups(words, duration_seconds=9.5, max_seconds=9.5)
    assert (group.start_seconds, group.end_seconds, group.text) == (0.0, 9.5, "W0 W1")
    assert word_groups([], duration_seconds=9.5, max_seconds=9.5) == []


def test_the_longest_pause_is_cut_and_a_margin_kept():
    words = spoken((0.2, 1.0), (1.1, 2.0), (6.0, 7.0), (7.4, 8.0))
    groups = word_groups(words, duration_seconds=20.0, max_seconds=9.0)
    assert [group.text for group in groups] == ["W0 W1 W2 W3"]  # The silence after it is dropped.
    groups = word_groups(words, duration_seconds=20.0, max_seconds=5.0)
    assert [(g.start_seconds, g.end_seconds, g.text) for g in groups] == [
        (0.0, 2.0 + MARGIN_SECONDS, "W0 W1"),
        (6.0 - MARGIN_SECONDS, 8.0 + MARGIN_SECONDS, "W2 W3"),
    ]
    alone = word_groups(spoken((1.0, 40.0)), duration_seconds=50.0, max_seconds=30.0)
    assert [group.end_seconds - group.start_seconds for group in alone] == [40.0]


def test_words_of_overlapping_windows_may_end_late():
    words = spoken((0.0, 9.0), (8.0, 8.5), (12.0, 13.0))
    groups = word_groups(words, duration_seconds=20.0, max_seconds=10.0)
    assert [group.text for group in groups] == ["W0 W1", "W2"]
    assert groups[0].end_seconds >= 9.0


@pytest.mark.parametrize("seed", range(5))
def test_parts_fit_unless_their_words_belong_together(seed):
    rng = np.random.default_rng(seed)
    pauses = rng.exponential(1.0, 60).round(1).tolist()
    together = {*rng.choice(60, 15, replace=False).tolist()}
    parts = short_parts(range(60), pauses, lambda part: len(part) <= 5, together=together)
    assert [n for part in parts for n in part] == list(range(60))
    for part in parts:
        assert part.start not in together or part.start == 0
        assert len(part) <= 5 or together.issuperset(part[1:])


def test_pauses_that_grow_steadily_are_cut_one_by_one():
    pauses = [float(n) for n in range(1200)]
    assert len(short_parts(range(1200), pauses, lambda part: len(part) == 1)) == 1200
