"""Pauses are found by sound, cuts are at pauses, and each utterance has the words of its speech."""

import numpy as np
import pytest

from asr_jax.decoding.pauses import (
    DELAYS,
    Pause,
    label_delay,
    pause_between,
    pieces,
    sound_levels,
)
from asr_jax.decoding.utterance_cuts import cut_spans, link_words
from asr_jax.decoding.written_text import WrittenWord

RATE_HZ = 16_000


def speech(*loud: tuple[float, float], seconds: float, noise: float = 1e-4) -> np.ndarray:
    """Return noise, loud in the given times."""
    rng = np.random.default_rng(0)
    level = np.full(round(seconds * RATE_HZ), noise)
    for start, end in loud:
        level[round(start * RATE_HZ) : round(end * RATE_HZ)] = 0.1
    return (level * rng.standard_normal(len(level))).astype(np.float32)


def test_levels_do_not_depend_on_blocks():
    samples = speech((0.5, 0.9), seconds=1.5)
    whole = sound_levels([samples], sample_rate_hz=RATE_HZ)
    parts = sound_levels(np.split(samples, [1, 77, 5000, 5001, 20000]), sample_rate_hz=RATE_HZ)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert len(whole) == 149


@pytest.mark.parametrize("noise", [1e-4, 1e-2])
def test_pause_ends_where_speech_starts_whatever_the_labels_say(noise):
    samples = speech((0.5, 1.5), (2.5, 3.5), seconds=4.0, noise=noise)
    levels = sound_levels([samples], sample_rate_hz=RATE_HZ)
    for end, start in [(1.4, 2.6), (1.55, 2.45), (1.3, 2.9)]:
        pause = pause_between(levels, end, start)
        np.testing.assert_allclose(pause[:2], (1.5, 2.5), atol=0.03)
        assert pause.quiet_seconds > 0.9


def test_sound_in_a_pause_belongs_to_the_word_beside():
    """A click, or an unrecognized word: the pause is as long as with quiet in its place."""
    samples = speech((0.5, 1.5), (1.8, 2.0), (2.6, 3.5), seconds=4.0)
    levels = sound_levels([samples], sample_rate_hz=RATE_HZ)
    pause = pause_between(levels, 1.4, 2.7)
    np.testing.assert_allclose(pause, (2.0, 2.6, 1.1), atol=0.05)


def test_pieces_make_up_the_recording_and_end_in_quiet():
    samples = speech(*[(k, k + 0.6) for k in range(30)], seconds=30.0)
    levels = sound_levels([samples], sample_rate_hz=RATE_HZ)
    found = list(pieces(levels, longest_seconds=7.0))
    assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]
    assert found[0][0] == 0 and found[-1][1] == len(levels) / 100
    assert all(end - start <= 7.0 for start, end in found)
    assert all(0.6 < end % 1 < 1 for _, end in found[:-1])


@pytest.mark.parametrize("delay", DELAYS[[2, 6, 10]])
def test_delay_of_labels_is_found(delay):
    samples = speech(*[(k, k + 0.5) for k in range(20)], seconds=20.0)
    levels = sound_levels([samples], sample_rate_hz=RATE_HZ)
    times = np.concatenate([np.arange(20) + x for x in (0.02, 0.25, 0.48)])
    np.testing.assert_allclose(label_delay(levels, times + delay), delay, atol=0.04)


def words(text: str) -> list[WrittenWord]:
    return [WrittenWord(word, word) for word in text.split()]


def spans(text: str, spoken: str, pauses: dict[int, float] | None = None, max_seconds=30.0):
    """Return the utterances of words that last a second each, with pauses before some of them."""
    heard, at, of_words = spoken.split(), 0.0, []
    for n in range(len(heard) + 1):
        quiet = (pauses or {}).get(n, 0.05)
        of_words.append(Pause(at, at + quiet, quiet))
        at += quiet + 1
    written = words(text)
    links = link_words(written, heard)
    return cut_spans(written, heard, links, of_words, max_seconds=max_seconds)


def found(text: str, *given, **options) -> list[str]:
    written = text.split()
    return [" ".join(written[n] for n in span.heard) for span in spans(text, *given, **options)]


def test_cuts_are_at_pauses():
    text = "alpha bravo charlie delta echo"
    assert found(text, text, {2: 1.0, 3: 0.3}) == ["alpha bravo", "charlie delta echo"]


def test_speech_without_text_and_text_without_speech_are_in_no_utterance():
    text = "alpha bravo unread words of nobody charlie delta"
    spoken = "alpha bravo juliett kilo zulu charlie delta"
    assert found(text, spoken) == ["alpha bravo", "charlie delta"]


def test_unheard_words_are_doubtful():
    [first, second] = spans("alpha bravo xx charlie delta", "alpha bravo charlie delta", {2: 1.0})
    assert (first.heard, second.heard) == ([0, 1], [3, 4])
    assert first.doubtful == second.doubtful == [range(2, 3)]


def test_long_speech_is_cut_at_its_longest_pauses():
    text = "alpha bravo charlie delta echo foxtrot golf hotel"
    cut = spans(text, text, {3: 0.4, 6: 0.2}, max_seconds=4.0)
    assert [span.heard for span in cut] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert all(span.end_seconds - span.start_seconds <= 4.0 for span in cut)


def test_no_cut_divides_a_word_of_the_text():
    text, spoken = "alphabravo charlie", "alpha bravo charlie"
    assert found(text, spoken, {1: 0.8, 2: 0.8}) == ["alphabravo", "charlie"]
