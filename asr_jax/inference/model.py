"""A trained model as a Python object: `asr-jax transcribe` without the command line."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from asr_jax.audio.samples import as_wav, audio_duration_seconds
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
    """A trained speech recognizer."""

    def __init__(self, recognizer: Recognizer):
        self._recognizer = recognizer

    @property
    def config(self) -> Config:
        """Settings of the training run, with the decoding options of `load`."""
        return self._recognizer.config

    @property
    def checkpoint(self) -> str:
        """Checkpoint that the parameters come from, such as `best (1500)`."""
        return self._recognizer.checkpoint

    def transcribe(
        self,
        audio: str | Path | np.ndarray | Sequence[str | Path | np.ndarray],
        *,
        sample_rate_hz: int | None = None,
        timestamps: bool = False,
    ) -> list[Transcript]:
        """Return one transcript per recording, in order.

        Transcripts do not depend on what else is in a batch, so passing many recordings at once is
        only faster. The first batch of each length is compiled.

        Args:
            audio: a path (FLAC, WAV, Ogg, MP3; any rate, any number of channels), samples [S] as
                floats in -1..1, or a sequence of these.
            sample_rate_hz: rate of the samples; by default the model's (usually 16 kHz).
            timestamps: include words, each with its start and end in seconds and its confidence;
                otherwise a transcript's `words` are empty.

        Raises:
            ValueError: a recording, which is named, cannot be read or has no samples.
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
    **fusion: str | Path | int | float,
) -> Model:
    """Load the model of a run directory, or of a directory written by
    `asr-jax export --format params`.

        model = asr_jax.load("runs/quickstart")
        print(model.transcribe("recording.flac")[0].text)
        model = asr_jax.load("runs/quickstart", beam=8, hotwords="names.txt")

    Args:
        directory: the run directory, or the output directory of an export.
        checkpoint: for a run: best (by WER on dev), last, a step, or average:N.
        beam: a value that replaces the config's decoding.beam.
        chunk_ms: a value that replaces decoding.chunk_ms.
        window_seconds: a value that replaces decoding.window_seconds.
        **fusion: fields of FusionOptions, which are the language-model and hotword options of
            `asr-jax transcribe`: language_model, language_model_weight, hotwords, ... Files are
            paths or strings.

    Raises:
        ValueError: the directory has no model, or one that is damaged or of another version; or
            the model does not support an option. The message names options as on the command line:
            for --decoder beam --beam 8, pass beam=8.
        TypeError: an unknown option.
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
