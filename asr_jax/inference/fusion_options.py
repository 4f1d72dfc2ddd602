"""Language-model and hotword options for beam search."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from asr_jax.decoding.automaton import Automaton
from asr_jax.decoding.fusion import Fusion
from asr_jax.decoding.hotwords import LARGEST_BOOST, make_hotwords, read_hotwords
from asr_jax.decoding.neural_lm import NeuralScorer
from asr_jax.decoding.ngram import load_language_model
from asr_jax.distributed.processes import is_first
from asr_jax.inference.recognizer import Recognizer, open_any_run
from asr_jax.text import Tokenizer

SOURCE_ORDER = 2  # Bigrams, as in LODR.


@dataclass(frozen=True, kw_only=True)
class FusionOptions:
    """Language models and hotwords for beam search; by default none."""

    language_model: Path | None = None
    """Language model to add to --decoder beam, one of:
    a text with one sentence per line, from which an n-gram model is estimated;
    an ARPA file, possibly gzip, over the tokenizer's pieces;
    the run directory of a neural language model."""
    language_model_weight: float = 0.3
    """Weight of the language model's log-probabilities."""
    language_model_order: int = 4
    """Order, in pieces, of the n-gram model estimated from a text."""
    source_language_model: Path | None = None
    """Language model of the recognizer's training text, to subtract, one of:
    an ARPA file or a run (density ratio);
    the training transcripts, from which a bigram model is estimated (LODR)."""
    source_language_model_weight: float = 0.1
    """Weight of the source language model's log-probabilities."""
    internal_lm_weight: float = 0.0
    """Weight of the recognizer's internal language model, to subtract (ILME)."""
    hotwords: Path | None = None
    """File of phrases to boost with --decoder beam, one per line.
    A line such as `ANNA :2.5` overrides --hotword-boost."""
    hotword_boost: float = 1.0
    """Boost per piece of a phrase, in nats."""

    def __post_init__(self) -> None:
        for name in ("language_model_weight", "source_language_model_weight", "internal_lm_weight"):
            if not 0 <= (value := getattr(self, name)) < float("inf"):
                raise ValueError(f"{_option(name)} {value}: must not be negative")
        needs = {
            "language_model_weight": "language_model",
            "language_model_order": "language_model",
            "source_language_model_weight": "source_language_model",
            "hotword_boost": "hotwords",
        }
        for name, needed in needs.items():
            value = getattr(self, name)
            if value != getattr(FusionOptions, name) and getattr(self, needed) is None:
                raise ValueError(f"{_option(name)} {value}: needs {_option(needed)}")
        if not 0 < self.hotword_boost <= LARGEST_BOOST:
            raise ValueError(
                f"--hotword-boost {self.hotword_boost}: must be positive, up to {LARGEST_BOOST:g}"
            )
        if self.language_model_order < 1:
            raise ValueError(
                f"--language-model-order {self.language_model_order}: must be positive"
            )

    @property
    def asked_for(self) -> str:
        """The first option given that asks for fusion; empty if none does."""
        for name in ("language_model", "source_language_model", "internal_lm_weight", "hotwords"):
            if getattr(self, name):
                return _option(name)
        return ""


def _option(field: str) -> str:
    """Return the field's name on the command line."""
    return f"--{field.replace('_', '-')}"


NO_FUSION_OPTIONS = FusionOptions()


def with_fusion(
    recognizer: Recognizer, options: FusionOptions, *, phrases: Mapping[str, float] | None = None
) -> Recognizer:
    """Return the recognizer with the fusion that `options` ask for.

    `phrases` with their boosts take the place of a file of hotwords.

    Raises ValueError where the recognizer's search does not support fusion.
    """
    if not (option := options.asked_for or ("--hotwords" if phrases else "")):
        return recognizer
    config, tokenizer = recognizer.config, recognizer.tokenizer
    kind = config.objective.kind if config.decoding.head == "objective" else "ctc"
    if kind not in ("transducer", "hat"):
        raise ValueError(f"{option}: needs a transducer or HAT model, not {kind}")
    if not config.decoding.beam:
        raise ValueError(f"{option}: needs a beam search; pass --decoder beam")
    scorers: list[Automaton | NeuralScorer] = []
    if path := options.language_model:
        weight, order = options.language_model_weight, options.language_model_order
        scorers.append(_language_model_scorer(path, tokenizer, order=order, weight=weight))
    if path := options.source_language_model:
        weight = -options.source_language_model_weight
        scorers.append(_language_model_scorer(path, tokenizer, order=SOURCE_ORDER, weight=weight))
    if options.hotwords:
        phrases = read_hotwords(options.hotwords, boost=options.hotword_boost)
    hotwords = make_hotwords(phrases, tokenizer) if phrases else None
    internal = options.internal_lm_weight
    fusion = Fusion(tuple(scorers), jnp.float32(internal) if internal else None, hotwords)
    everywhere = NamedSharding(recognizer.mesh, P())
    return recognizer._replace(fusion=jax.device_put(fusion, everywhere))


def _language_model_scorer(
    path: Path, tokenizer: Tokenizer, *, order: int, weight: float
) -> Automaton | NeuralScorer:
    """Load a neural language model from a run directory, or an n-gram model from a file."""
    if path.is_dir():
        return _neural_scorer(path, tokenizer, weight=weight)
    return load_language_model(path, tokenizer, order=order, weight=weight, warn=_warn)


def _neural_scorer(run: Path, tokenizer: Tokenizer, *, weight: float) -> NeuralScorer:
    """Load a language model's run, whose pieces must be the recognizer's."""
    opened = open_any_run(run, "best")
    objective = opened.config.objective
    if not objective.is_language_model:
        raise ValueError(
            f"{run}: objective.kind = {objective.kind!r}: must be a language model's run"
        )
    if opened.tokenizer.pieces != tokenizer.pieces:
        raise ValueError(
            f"{run}: its pieces differ from the recognizer's; train the language model with "
            "--tokenizer.model RECOGNIZER/tokenizer.model"
        )
    return NeuralScorer(params=opened.params, weight=jnp.float32(weight), graphdef=opened.graphdef)


def _warn(text: str) -> None:
    if is_first():
        print(f"warning: {text}", file=sys.stderr)


def fusion_facts(options: FusionOptions) -> dict[str, str]:
    """Return the options that differ from their defaults, for a report."""
    return {
        field.name.replace("_", " "): str(getattr(options, field.name))
        for field in fields(options)
        if getattr(options, field.name) != getattr(NO_FUSION_OPTIONS, field.name)
    }
