"""The WER or CER on data.dev, measured while a recognizer is trained."""

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from asr_jax.config import Config
from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.pipeline import evaluation_batches
from asr_jax.distributed.mesh import local_rows, utterance_shards
from asr_jax.distributed.processes import is_first
from asr_jax.experiment.skipped import print_left_out
from asr_jax.inference.decode_batch import (
    JittedDecoding,
    jitted_decoding,
    recognition_buckets,
    transcribe_batches,
)
from asr_jax.scoring.evaluation import unwritable
from asr_jax.scoring.scripts import is_without_spaces
from asr_jax.scoring.wer import character_error_rate, word_error_rate
from asr_jax.text import Tokenizer
from asr_jax.training.loop import DevEvaluation
from asr_jax.types import Skipped, Utterance


def dev_wer(
    config: Config, graphdef: nnx.GraphDef, tokenizer: Tokenizer, mesh: Mesh, corpus: Corpus
) -> DevEvaluation | None:
    """Return a function that measures dev_wer, in percent; None without recordings for it.

    For scripts without spaces between words, it also measures dev_cer, which then selects the best
    checkpoint.
    """
    utterances = list(corpus.held_out)
    if config.data.dev:
        utterances, unreadable = read_transcribed(config.data.dev, "data.dev")
        print_left_out("data.dev", unreadable)
    if not utterances:
        return None
    lacking = unwritable(
        [utterance.text for utterance in utterances],
        unknown_characters=tokenizer.unknown_characters,
        characters=tokenizer.characters,
    )
    if lacking and is_first():
        print(
            f"data.dev: references with characters that the model cannot write: {lacking}",
            file=sys.stderr,
        )
    recognize = jitted_decoding(graphdef, config, mesh)
    buckets = recognition_buckets(
        utterances,
        config,
        tokenizer.vocabulary_size,
        devices=utterance_shards(mesh),
        passes=config.train.steps / config.train.evaluate_every_steps,
    )
    in_words = not is_without_spaces(tokenizer.normalize(one.text) for one in utterances)
    measure = _DevWer(config, tokenizer, mesh, utterances, buckets, recognize, in_words)
    return DevEvaluation(measure, "dev_wer" if in_words else "dev_cer")


@dataclass(frozen=True)
class _DevWer:
    config: Config
    tokenizer: Tokenizer
    mesh: Mesh
    utterances: Sequence[Utterance]
    buckets: Buckets
    recognize: JittedDecoding
    in_words: bool
    noted: set[str] = field(default_factory=set)
    """Ids of unreadable recordings that were reported, so that each is reported once."""

    def __call__(self, averaged: PyTree, *, note: Callable[[str], None]) -> dict[str, float]:
        config, utterances = self.config, self.utterances
        batches = evaluation_batches(
            utterances,
            [np.zeros(0, np.int32)] * len(utterances),
            buckets=self.buckets,
            data=config.data,
            sample_rate_hz=config.features.sample_rate_hz,
            local_rows=functools.partial(local_rows, self.mesh),
        )
        transcripts = transcribe_batches(
            self.recognize,
            averaged,
            batches,
            self.tokenizer,
            config=config,
            utterances=len(utterances),
        )
        self._note_new(batches.failed, note)
        scored = [
            (self.tokenizer.normalize(utterance.text), best[0].text)
            for utterance, best in zip(utterances, transcripts)
            if best
        ]
        if not any(reference.split() for reference, _ in scored):
            dev = f"data.dev = {config.data.dev}" if config.data.dev else "the held-out part"
            raise ValueError(f"{dev}: none of its recordings with a transcript can be read")
        figures = {"dev_wer": 100 * word_error_rate(*zip(*scored))}
        if self.in_words:
            return figures
        return {"dev_cer": 100 * character_error_rate(*zip(*scored)), **figures}

    def _note_new(self, failed: Sequence[Skipped], note: Callable[[str], None]) -> None:
        for skipped in failed:
            if skipped.id not in self.noted:
                note(f"data.dev: left out: {skipped.id}, {skipped.reason}")
                self.noted.add(skipped.id)
