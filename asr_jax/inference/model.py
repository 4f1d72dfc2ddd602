"""A trained model as a Python object: what `asr-jax transcribe` does, without a command line."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from asr_jax.audio import as_wav, audio_duration_seconds
from asr_jax.config import Config
from asr_jax.inference.fusion_options import NO_FUSION_OPTIONS, with_fusion
from asr_jax.inference.recognizer import (
    Recognizer,
    open_run,
    recognize_utterances,
    with_decoding,
)
from asr_jax.types import InMemory, Transcript, Utterance


class Model:
    """A trained recogniser."""

    def __init__(self, recognizer: Recognizer):
        self._recognizer = recognizer

    @property
    def config(self) -> Config:
        """Every setting of the run that trained it."""
        return self._recognizer.config

    @property
    def checkpoint(self) -> str:
        """Which steps of the run its parameters are of, such as `best (1500)`."""
        return self._recognizer.checkpoint

    def transcribe(
        self,
        audio: str | Path | np.ndarray | Sequence[str | Path | np.ndarray],
        *,
        sample_rate_hz: int | None = None,
        timestamps: bool = False,
    ) -> list[Transcript]:
        """The text of recordings, one transcript for each, in their order.

        What a batch holds changes no transcript, so that many at once is merely faster. The first
        batch of a length compiles.

        Args:
            audio: paths (FLAC, WAV, Ogg, MP3; any rate, any number of channels), or samples [S],
                floats in -1..1; or a sequence of these.
            sample_rate_hz: of the samples; the model's (16 kHz by default) where not given.
            timestamps: with words, each with its start and end in seconds and its confidence;
                without, a transcript's `words` are empty.

        Raises:
            ValueError: a recording that cannot be read, or has no samples, by name.
        """
        recordings = [audio] if isinstance(audio, str | Path | np.ndarray) else audio
        rate_hz = sample_rate_hz or self.config.features.sample_rate_hz
        utterances = [_utterance(n, recording, rate_hz) for n, recording in enumerate(recordings)]
        recognition = recognize_utterances(self._recognizer, utterances)
        for skipped in recognition.failed:
            raise ValueError(skipped.reason)
        best = [transcript for transcript in recognition.best if transcript is not None]
        return best if timestamps else [replace(transcript, words=()) for transcript in best]


def load(
    directory: str | Path,
    *,
    checkpoint: str = "best",
    beam: int | None = None,
    chunk_ms: float | None = None,
    window_seconds: float | None = None,
    **fusion: str | Path | float,
) -> Model:
    """The model of a run directory, or of one that `asr-jax export --format params` wrote.

        model = asr_jax.load("runs/quickstart")
        print(model.transcribe("recording.flac")[0].text)
        model = asr_jax.load("runs/quickstart", beam=8, hotwords="names.txt")

    Args:
        directory: RUN, or OUT of an export.
        checkpoint: of a run: best (by WER on dev), last, a step, or average:N.
        beam, chunk_ms, window_seconds: in place of the config's decoding.beam, and so on.
        fusion: what a beam search shall know besides the audio: hotwords, language_model and what
            else `asr-jax transcribe` has of that kind, under the same names (fields of
            FusionOptions).

    Raises:
        ValueError: the directory holds no model, or one that is damaged or of another version; or
            it cannot be searched so, which names the option as the command line has it (of
            --decoder beam --beam 8, give beam=8).
        TypeError: an option that is none.
    """
    recognizer = with_decoding(
        open_run(Path(directory), checkpoint),
        beam=beam,
        chunk_ms=chunk_ms,
        window_seconds=window_seconds,
    )
    given = {
        name: Path(value) if isinstance(value, str) else value for name, value in fusion.items()
    }
    return Model(with_fusion(recognizer, replace(NO_FUSION_OPTIONS, **given)))


def _utterance(number: int, audio: str | Path | np.ndarray, rate_hz: int) -> Utterance:
    if isinstance(audio, str | Path):
        return Utterance(str(number), Path(audio), "", audio_duration_seconds(audio))
    name, samples = f"audio[{number}]", np.asarray(audio)
    if samples.ndim != 1 or not len(samples) or not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"{name}: {samples.dtype} samples of shape {samples.shape}: must be floats in -1..1, "
            "one channel of at least one sample"
        )
    wav = InMemory(as_wav(samples.astype(np.float32), rate_hz))
    return Utterance(str(number), Path(name), "", len(samples) / rate_hz, within=wav)
