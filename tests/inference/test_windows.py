"""Windows cover a recording, and merging them neither loses nor doubles a word."""

import random
from pathlib import Path

import numpy as np
import pytest

from asr_jax.config import Config, DecodingConfig, ObjectiveConfig
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.inference.recognizer import windows_of
from asr_jax.inference.windows import OVERLAP_SECONDS, merge_windows, window_starts
from asr_jax.text import Tokenizer
from asr_jax.types import Utterance

FRAME_SECONDS = 0.04
WORDS = ["one", "two", "seven", "eleven", "a", "e", "twenty"]


@pytest.fixture(scope="module", params=["char", "unigram"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "model"
    size = 12 if request.param == "char" else 17
    return Tokenizer.train(WORDS * 20, kind=request.param, vocabulary_size=size, path=path)


@pytest.mark.parametrize("duration", [40.0, 40.01, 41.0, 75.99, 76.0, 100.0, 3600.0])
def test_windows_cover_the_recording(duration):
    starts = window_starts(duration, window_seconds=40.0, frame_seconds=FRAME_SECONDS)
    ends = [min(start + 40.0, duration) for start in starts]
    assert starts[0] == 0 and ends[-1] == duration
    assert all(
        start / FRAME_SECONDS == pytest.approx(round(start / FRAME_SECONDS)) for start in starts
    )
    # Rounding costs up to a frame.
    overlaps = [end - start for start, end in zip(starts[1:], ends)]
    assert all(overlap >= OVERLAP_SECONDS - FRAME_SECONDS - 1e-6 for overlap in overlaps)
    assert ends[-1] - starts[-1] >= 40.0 - FRAME_SECONDS - 1e-6 or len(starts) == 1
    assert len(starts) == max(1, int(np.ceil((duration - 4) / 36 - 1e-9)))


def spoken(rng: random.Random, tokenizer: Tokenizer, seconds: float):
    """Return labels of a sequence of words, many of them repeated, and their frames."""
    labels, frames, frame = [], [], 5
    while frame * FRAME_SECONDS < seconds - 1:
        word = rng.choice(WORDS)
        for _ in range(rng.choice([1, 1, 2])):
            ids = tokenizer.encode(word)
            ids = (tokenizer.separator if labels else []) + ids
            for id in ids:
                labels.append(id)
                frames.append(frame)
                frame += rng.choice([0, 1, 2])
            frame += rng.randint(6, 12)
    return np.array(labels), np.array(frames)


def row(labels, frames, first: int = 0) -> Hypotheses:
    return Hypotheses(
        labels=np.array(labels, np.int64)[None],
        counts=np.array([len(labels)]),
        frames=np.array(frames, np.int64)[None] - first,
        log_probabilities=np.full((1, len(labels)), -0.5),
        scores=np.array([-1.0]),
    )


def heard(rng: random.Random, labels, frames, *, start: float, end: float, ends: tuple[bool, bool]):
    """Return a window's hypothesis: frames off by one, and errors within a second of a cut."""
    first, emitted = round(start / FRAME_SECONDS), []
    for label, frame in zip(labels, frames):
        seconds = frame * FRAME_SECONDS
        if not start <= seconds < end:
            continue
        at_cut = (seconds < start + 1 and not ends[0]) or (seconds > end - 1 and not ends[1])
        if at_cut and rng.random() < 0.3:
            continue
        if at_cut and rng.random() < 0.3:
            label = rng.randrange(2, max(labels) + 1)
        emitted.append((label, max(first, frame + rng.choice([-1, 0, 0, 1]))))
    emitted = [(label, frame) for (label, _), frame in zip(emitted, sorted(f for _, f in emitted))]
    return row(*(zip(*emitted) if emitted else ([], [])), first)


@pytest.mark.parametrize("seed", range(5))
def test_no_word_is_lost_or_doubled(tokenizer, seed):
    rng = random.Random(seed)
    duration, window_seconds = 130.0, rng.choice([8.0, 12.5, 40.0])
    labels, frames = spoken(rng, tokenizer, duration)
    starts = window_starts(duration, window_seconds=window_seconds, frame_seconds=FRAME_SECONDS)
    windows = [
        heard(
            rng,
            labels,
            frames,
            start=start,
            end=start + window_seconds,
            ends=(k == 0, k == len(starts) - 1),
        )
        for k, start in enumerate(starts)
    ]
    found = merge_windows(
        windows, starts, tokenizer, window_seconds=window_seconds, frame_seconds=FRAME_SECONDS
    )
    assert found.labels[0].tolist() == labels.tolist()
    assert np.abs(found.frames[0] - frames).max() <= 1
    assert found.counts == [len(labels)] and found.scores == [-len(starts)]


def test_windows_without_agreement_are_split_at_the_middle(tokenizer):
    """Two windows of 8 s overlap from 4 to 8 s, so the middle is at 6 s."""
    one, two = (tokenizer.encode(word) for word in ("one", "two"))
    say = lambda ids, seconds: [(id, round(seconds / FRAME_SECONDS)) for id in ids]
    separator = tokenizer.separator
    before = say(one, 1) + say(separator + one, 5) + say(separator + one, 7)
    after = say(two, 5.5 - 4) + say(separator + two, 6.5 - 4) + say(separator + two, 9 - 4)
    windows = [row(*zip(*before)), row(*zip(*after))]
    options = {"window_seconds": 8.0, "frame_seconds": FRAME_SECONDS}
    found = merge_windows(windows, [0.0, 4.0], tokenizer, **options)
    assert tokenizer.decode(found.labels[0]) == "one one two two"
    assert np.all(np.diff(found.frames[0]) >= 0)
    silent = row([], [])
    for heard, text in (([windows[0], silent], "one one"), ([silent, windows[1]], "two two")):
        found = merge_windows(heard, [0.0, 4.0], tokenizer, **options)
        assert tokenizer.decode(found.labels[0]) == text
    assert merge_windows([silent, silent], [0.0, 4.0], tokenizer, **options).labels.shape == (1, 0)


def test_windows_are_segments_of_the_recording(tokenizer):
    long = Utterance("u", Path("a.flac"), "", 50.0, offset_seconds=3.0)
    config = Config(decoding=DecodingConfig(window_seconds=40.0))
    first, last = windows_of(long, config)
    assert (first.offset_seconds, first.duration_seconds) == (3.0, 40.0)
    assert (last.offset_seconds, last.duration_seconds) == (13.0, 40.0)
    assert windows_of(Utterance("u", Path("a.flac"), "", 40.0), config) != [first]
    blind = ObjectiveConfig(kind="attention", ctc_weight=0.0)
    assert windows_of(long, Config(objective=blind)) == [long]
    with pytest.raises(
        ValueError, match=r"^decoding.window_seconds = 5\.0: must be at least 6, or 0"
    ):
        DecodingConfig(window_seconds=5.0)
