"""A trained model as a Python object: `asr-jax transcribe` without the command line."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from asr_jax.config import Config
from asr_jax.decoding.hotwords import Phrases, boosted
from asr_jax.inference.fusion_options import NO_FUSION_OPTIONS, FusionOptions, with_fusion
from asr_jax.inference.inputs import Recording, utterances_of, valid_rate
from asr_jax.inference.recognizer import (
    Recognizer,
    open_run,
    recognize_utterances,
    with_decoding,
)
from asr_jax.types import Transcript


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
        audio: Recording | Iterable[Recording],
        *,
        sample_rate_hz: int | float | np.integer | np.floating | None = None,
        timestamps: bool = False,
    ) -> list[Transcript]:
        """Return one transcript per recording, in order.

        Transcripts do not depend on what else is in a batch, so passing many recordings at once is
        only faster. The first batch of each length is compiled.

        Args:
            audio: a recording or several. A recording is one of:
                a path to a file (FLAC, WAV, Ogg, MP3; any rate, any number of channels) or a pipe;
                the contents of such a file as bytes, or the file open in binary mode;
                samples [S] of one channel, as an array of NumPy or JAX or a list: floats in -1..1,
                or int16 or int32 at full scale;
                a dict of Hugging Face's datasets: array and sampling_rate, or bytes, or path.
            sample_rate_hz: rate of samples without a dict; by default the model's (usually 16 kHz).
            timestamps: include words, each with its start and end in seconds and its confidence;
                otherwise a transcript's `words` are empty.

        Raises:
            ValueError: a recording, which is named, is of another kind, cannot be read or has no
                samples; or the rate is no number of Hz.
        """
        rate_hz = self.config.features.sample_rate_hz
        if sample_rate_hz is not None:
            rate_hz = valid_rate(sample_rate_hz, "sample_rate_hz")
        utterances = utterances_of(audio, sample_rate_hz=rate_hz)
        recognition = recognize_utterances(self._recognizer, utterances)
        for skipped in recognition.failed:
            raise ValueError(skipped.reason)
        best = [transcript for transcript in recognition.best if transcript is not None]
        return best if timestamps else [replace(transcript, words=()) for transcript in best]


def load(
    directory: str | Path,
    *,
    checkpoint: str | int = "best",
    beam: int | None = None,
    chunk_ms: float | None = None,
    window_seconds: float | None = None,
    hotwords: str | Path | Phrases | None = None,
    **fusion: str | Path | int | float,
) -> Model:
    """Load the model of a run directory, or of a directory written by
    `asr-jax export --format params`.

        model = asr_jax.load("runs/quickstart")
        print(model.transcribe("recording.flac")[0].text)
        model = asr_jax.load("runs/quickstart", beam=8, hotwords="names.txt")

    Args:
        directory: the run directory, or the output directory of an export.
        checkpoint: for a run: best (on dev), last, a step, or average:N.
        beam: a value that replaces the config's decoding.beam.
        chunk_ms: a value that replaces decoding.chunk_ms.
        window_seconds: a value that replaces decoding.window_seconds.
        hotwords: phrases to boost, or pairs of a phrase and its boost, or a dict of these; or the
            path of a file of them, as for `asr-jax transcribe`.
        **fusion: other fields of FusionOptions, which are the language-model and hotword options
            of `asr-jax transcribe`: language_model, language_model_weight, hotword_boost, ... Files
            are paths or strings.

    Raises:
        ValueError: the directory has no model, or one that is damaged or of another version; or
            the model does not support an option. The message names options as on the command line:
            for --decoder beam --beam 8, pass beam=8.
        TypeError: an unknown option.
    """
    recognizer = with_decoding(
        open_run(Path(directory), str(checkpoint)),
        beam=beam,
        chunk_ms=chunk_ms,
        window_seconds=window_seconds,
    )
    given = {
        name: Path(value) if isinstance(value, str) else value for name, value in fusion.items()
    }
    phrases = None
    if isinstance(hotwords, str | Path):
        given["hotwords"] = Path(hotwords)
    elif hotwords is not None:
        boost = given.pop("hotword_boost", FusionOptions.hotword_boost)
        phrases = boosted(hotwords, boost=boost)
    options = replace(NO_FUSION_OPTIONS, **given)
    return Model(with_fusion(recognizer, options, phrases=phrases))
