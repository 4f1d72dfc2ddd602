"""Recordings that cannot be read as a whole are cut where they can."""

import io
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from tiny import TINY, tiny_config

from asr_jax.audio.samples import AudioError
from asr_jax.config import Config
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.recordings import read_recording
from asr_jax.decoding.fusion import NO_FUSION
from asr_jax.decoding.written_text import WrittenWord
from asr_jax.inference import segmentation
from asr_jax.inference.inputs import readable_utterance
from asr_jax.inference.recognizer import Recognition, Recognizer
from asr_jax.inference.segmentation import Segmentation, segment_recording
from asr_jax.types import Skipped, Transcript, Word

ROOT = Path(__file__).parents[2]
RATE_HZ = 16_000
NAMES = [a + b for a in "abcdefgh" for b in "klmno"]
# Words of half a second, one each second.
WORDS = [Word(name, n + 0.3, n + 0.8, 1.0) for n, name in enumerate(NAMES)]
# What the model of `segmented` recognizes.
MODEL = {"words": WORDS}


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
                for word in MODEL["words"]
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

    def run(
        contents: bytes, config: Config = TINY, words=tuple(NAMES), pause_seconds=0.3
    ) -> Segmentation:
        path = Path(tmp_path / "a")
        path.write_bytes(contents)
        return segment_recording(
            Recognizer._make([config, *[None] * 5, NO_FUSION, None]),
            readable_utterance("0", path),
            [WrittenWord(word, word) for word in words],
            max_seconds=20.0,
            pause_seconds=pause_seconds,
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


def test_text_of_another_recording_is_refused(segmented):
    with pytest.raises(ValueError, match="a: the text is not of this recording.* 0 of 150 charac"):
        segmented(encoded(format="WAV"), words=("zyxwv",) * 30)


def test_a_long_text_has_any_few_characters(segmented, monkeypatch):
    """Two of them, which a model takes noise for, do not make the text that of a recording."""
    monkeypatch.setitem(MODEL, "words", WORDS[3:4])
    with pytest.raises(ValueError, match="they share . of 80 characters of the text and 2 recog"):
        segmented(encoded(format="WAV"))


def test_a_recording_without_words_is_refused(segmented, monkeypatch):
    monkeypatch.setitem(MODEL, "words", [])
    with pytest.raises(ValueError, match="a: the model recognizes no words in it"):
        segmented(encoded(format="WAV"))


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


def simulated(joined, *, seed: int) -> list[Word]:
    """Return what a model of 10 % character errors recognizes, with labels up to 0.1 s off."""
    chance = np.random.default_rng(seed)
    words = []
    for text, (start, end) in zip(joined.texts, joined.speech):
        seconds = (end - start) / len(text)
        place = 0
        for word in text.split():
            heard = [str(chance.choice([*"EAIOU"])) if chance.random() < 0.1 else c for c in word]
            times = [start + seconds * (place + k) + chance.uniform(0, 0.1) for k in (0, len(word))]
            place += len(word) + 1
            if chance.random() > 0.03:
                words.append(Word("".join(heard), *times, 1.0))
    return words


def test_joined_recordings_are_cut_where_they_were_joined(segmented, monkeypatch, tmp_path):
    """Samples of AN4 with a rough text and what a rough model would recognize."""
    path = ROOT / "benchmarks/segment.py"
    benchmark = SimpleNamespace(**runpy.run_path(str(path)))
    utterances = read_transcribed(str(ROOT / "samples/an4/dev"), "--data")[0][::2]
    recordings = [
        (u.text, u.speaker, read_recording(u, sample_rate_hz=RATE_HZ)) for u in utterances
    ]
    joined = benchmark.join(recordings, tmp_path / "joined.wav", seed=0)
    words = benchmark.corrupted(joined.texts, 0.1, seed=0)
    monkeypatch.setitem(MODEL, "words", simulated(joined, seed=1))
    found = segmented(joined.path.read_bytes(), words=words, pause_seconds=0.7)
    entries = [
        {
            "offset": u.offset_seconds,
            "duration": u.duration_seconds,
            "text": u.text,
            "confidence": 1,
        }
        for u in found.utterances
    ]
    figures = benchmark.compare(joined, entries)
    assert figures["start_end_error_ms"][0] < 100, figures
    assert figures["precision"] > 0.85 and figures["recall"] > 0.85, figures
