"""Recordings that cannot be read as a whole are cut where they can."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import TINY, tiny_config

from asr_jax.audio.samples import AudioError
from asr_jax.config import Config
from asr_jax.data.recordings import read_recording
from asr_jax.decoding.fusion import NO_FUSION
from asr_jax.decoding.written_text import WrittenWord
from asr_jax.inference import segmentation
from asr_jax.inference.inputs import readable_utterance
from asr_jax.inference.recognizer import Recognition, Recognizer
from asr_jax.inference.segmentation import Segmentation, segment_recording
from asr_jax.types import Skipped, Transcript, Word

RATE_HZ = 16_000
NAMES = [a + b for a in "abcdefgh" for b in "klmno"]
# Words of half a second, one each second.
WORDS = [Word(name, n + 0.3, n + 0.8, 1.0) for n, name in enumerate(NAMES)]


def speech() -> np.ndarray:
    """Return sound where there are words, above a soft noise."""
    rng = np.random.default_rng(0)
    samples = 0.001 * rng.standard_normal(len(WORDS) * RATE_HZ)
    for word in WORDS:
        first, end = (round(t * RATE_HZ) for t in (word.start_seconds, word.end_seconds))
        samples[first:end] = 0.3 * rng.uniform(-1, 1, end - first)
    return samples


def encoded(**format: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, speech(), RATE_HZ, **format)
    return file.getvalue()


def overwritten(whole: bytes) -> bytes:
    """Return a file with other bytes in its middle."""
    middle = len(whole) // 2
    noise = np.random.default_rng(1).bytes(3000)
    return whole[:middle] + noise + whole[middle + len(noise) :]


@pytest.fixture
def segmented(monkeypatch, tmp_path):
    """Segment a file with a model that recognizes whatever can be read of it."""

    def samples(utterance):
        return read_recording(utterance, sample_rate_hz=RATE_HZ)

    def recognize(_, utterances, report):
        best, failed = [], []
        for part in utterances:
            start = part.offset_seconds
            try:
                end = start + len(samples(part)) / RATE_HZ
            except AudioError as error:
                best.append(None)
                failed.append(Skipped(part.id, error.reason))
                continue
            words = tuple(
                Word(word.text, word.start_seconds - start, word.end_seconds - start, 1.0)
                for word in WORDS
                if start <= word.start_seconds and word.end_seconds <= end
            )
            best.append([Transcript("", words, 0.0)])
        return Recognition(best, failed, 0.0, 0.0)

    def score(_, utterances):
        for utterance in utterances:
            samples(utterance)  # What is cut can be read.
        return np.zeros(len(utterances))

    monkeypatch.setattr(segmentation, "recognize_utterances", recognize)
    monkeypatch.setattr(segmentation, "text_log_likelihoods", score)

    def run(contents: bytes, config: Config = TINY) -> Segmentation:
        path = Path(tmp_path / "a")
        path.write_bytes(contents)
        return segment_recording(
            Recognizer._make([config, *[None] * 5, NO_FUSION]),
            readable_utterance("0", path),
            [WrittenWord(name, name) for name in NAMES],
            max_seconds=20.0,
            pause_seconds=0.3,
            report=lambda part, done: None,
        )

    return run


def texts(found: Segmentation) -> list[str]:
    """Return the words, each of which is an utterance, after a look at their times."""
    times = {word.text: word for word in WORDS}
    for utterance in found.utterances:
        word = times[utterance.text]
        assert utterance.offset_seconds == pytest.approx(word.start_seconds, abs=0.1)
        end = utterance.offset_seconds + utterance.duration_seconds
        assert end == pytest.approx(word.end_seconds, abs=0.1)
    return [utterance.text for utterance in found.utterances]


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3"])
def test_whole_recordings_are_cut_into_words(segmented, format):
    found = segmented(encoded(format=format))
    assert texts(found) == NAMES and found.unread == []


def test_frames_of_levels_do_not_drift_at_odd_rates(segmented):
    """At 11,025 Hz a hundredth of a second is no whole number of samples."""
    odd = tiny_config(features={"sample_rate_hz": 11_025})
    found = segmented(encoded(format="WAV"), odd)
    assert texts(found) == NAMES
    assert found.recording_seconds == pytest.approx(len(NAMES), abs=0.02)


def test_words_around_damage_are_found(segmented):
    found = segmented(overwritten(encoded(format="FLAC")))
    [part] = found.unread
    assert part.end_seconds - part.start_seconds <= 3 and "damaged" in part.reason
    lost = [name for name in NAMES if name not in texts(found)]
    assert 1 <= len(lost) <= 4
    assert all(part.start_seconds - 1 < NAMES.index(name) < part.end_seconds for name in lost)


def test_an_utterance_ends_before_damage(segmented):
    """Also if the damage is no pause, and the words on both sides would be one utterance."""
    samples, file = speech(), io.BytesIO()
    samples[20 * RATE_HZ + 100] = np.nan
    soundfile.write(file, samples, RATE_HZ, format="WAV", subtype="FLOAT")
    found = segmented(file.getvalue())
    [part] = found.unread
    assert part[:2] == (20.0, 21.0) and part.reason == "samples that are not finite"
    assert texts(found) == NAMES[:20] + NAMES[21:]


@pytest.mark.parametrize(
    "format",
    [
        {"format": "WAV"},
        {"format": "FLAC"},
        {"format": "MP3"},
        {"format": "OGG", "subtype": "VORBIS"},
    ],
    ids=lambda format: format.get("subtype", format["format"]),
)
def test_truncated_recordings_are_read_up_to_their_end(segmented, format):
    whole = encoded(**format)
    found = segmented(whole[: len(whole) * 3 // 5])
    [part] = found.unread
    assert 20 < part.start_seconds < 28 and "truncated" in part.reason
    number = int(part.start_seconds)
    assert texts(found)[: number - 1] == NAMES[: number - 1]
    assert len(found.utterances) <= number + 1


@pytest.mark.parametrize("level", [0.0, 1 / 32_768])
def test_silence_is_refused(segmented, level):
    file = io.BytesIO()
    samples = level * np.random.default_rng(0).integers(-1, 2, 5 * RATE_HZ)
    soundfile.write(file, samples, RATE_HZ, format="WAV")
    with pytest.raises(AudioError, match="a: silent"):
        segmented(file.getvalue())


def test_a_recording_of_which_nothing_can_be_read_is_refused(segmented):
    samples, file = np.full(RATE_HZ, np.nan), io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioError, match="samples that are not finite"):
        segmented(file.getvalue())
