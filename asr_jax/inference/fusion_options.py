"""What a beam search shall know besides the audio: the options of evaluate and transcribe."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from asr_jax.decoding.automaton import Automaton
from asr_jax.decoding.fusion import Fusion
from asr_jax.decoding.hotwords import hotword_automaton, read_hotwords
from asr_jax.decoding.neural_lm import NeuralScorer
from asr_jax.decoding.ngram import load_language_model
from asr_jax.distributed.processes import is_first
from asr_jax.inference.recognizer import Recognizer, open_any_run
from asr_jax.text import Tokenizer

SOURCE_ORDER = 2  # LODR's


@dataclass(frozen=True, kw_only=True)
class FusionOptions:
    """Nothing, or language models and hotwords, with a beam search."""

    language_model: Path | None = None
    """What --decoder beam adds: a text with a sentence a line, from which an n-gram model is
    estimated, an .arpa or .arpa.gz file over the tokenizer's pieces, or the run directory of a
    neural language model."""
    language_model_weight: float = 0.3
    """Its log-probabilities times this are added to the scores."""
    language_model_order: int = 4
    """Pieces in an n-gram that is estimated from a text."""
    source_language_model: Path | None = None
    """Language model of what the recogniser was trained on, which is subtracted: an ARPA file or
    a run (density ratio), or the training's transcripts, of which a bigram model is made (LODR)."""
    source_language_model_weight: float = 0.1
    """Its log-probabilities times this are subtracted."""
    internal_lm_weight: float = 0.0
    """What the model knows of the next piece without audio, times this, is subtracted (ILME)."""
    hotwords: Path | None = None
    """Phrases that --decoder beam finds rather: a file with one a line, its own boost behind a
    colon, as in `ANNA :2.5`."""
    hotword_boost: float = 1.0
    """What each piece of a phrase adds to the score, in nats."""

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
        if not 0 < self.hotword_boost < float("inf"):
            raise ValueError(f"--hotword-boost {self.hotword_boost}: must be positive")
        if self.language_model_order < 1:
            raise ValueError(
                f"--language-model-order {self.language_model_order}: must be positive"
            )

    @property
    def asked_for(self) -> str:
        """The first option that asks for a fusion, if any."""
        for name in ("language_model", "source_language_model", "internal_lm_weight", "hotwords"):
            if getattr(self, name):
                return _option(name)
        return ""


def _option(field: str) -> str:
    """Return the field's name on the command line."""
    return f"--{field.replace('_', '-')}"


NO_FUSION_OPTIONS = FusionOptions()


def with_fusion(recognizer: Recognizer, options: FusionOptions) -> Recognizer:
    """The same with what `options` ask for. Raises ValueError where its search cannot."""
    if not (option := options.asked_for):
        return recognizer
    config, tokenizer = recognizer.config, recognizer.tokenizer
    kind = config.objective.kind if config.decoding.head == "objective" else "ctc"
    if kind not in ("transducer", "hat"):
        raise ValueError(f"{option}: is for transducer and HAT, not for {kind}")
    if not config.decoding.beam:
        raise ValueError(f"{option}: needs a beam search; say --decoder beam")
    scorers: list[Automaton | NeuralScorer] = []
    if path := options.language_model:
        weight, order = options.language_model_weight, options.language_model_order
        scorers.append(_language_model_scorer(path, tokenizer, order=order, weight=weight))
    if path := options.source_language_model:
        weight = -options.source_language_model_weight
        scorers.append(_language_model_scorer(path, tokenizer, order=SOURCE_ORDER, weight=weight))
    if options.hotwords:
        phrases = read_hotwords(options.hotwords, boost=options.hotword_boost)
        scorers.append(hotword_automaton(phrases, tokenizer))
    internal = options.internal_lm_weight
    fusion = Fusion(tuple(scorers), jnp.float32(internal) if internal else None)
    everywhere = NamedSharding(recognizer.mesh, P())
    return recognizer._replace(fusion=jax.device_put(fusion, everywhere))


def _language_model_scorer(
    path: Path, tokenizer: Tokenizer, *, order: int, weight: float
) -> Automaton | NeuralScorer:
    """The scorer of a run directory, or of an n-gram model's file or text."""
    if path.is_dir():
        return _neural_scorer(path, tokenizer, weight=weight)
    return load_language_model(path, tokenizer, order=order, weight=weight, warn=_warn)


def _neural_scorer(run: Path, tokenizer: Tokenizer, *, weight: float) -> NeuralScorer:
    """Of the run directory of a language model that has the recogniser's pieces."""
    opened = open_any_run(run, "best")
    if (kind := opened.config.objective.kind) != "language_model":
        raise ValueError(f"{run}: objective.kind = {kind!r}: must be a language model's run")
    if opened.tokenizer.pieces != tokenizer.pieces:
        raise ValueError(
            f"{run}: its pieces are not the recogniser's; train the language model with "
            "--tokenizer.model RECOGNISER/tokenizer.model"
        )
    return NeuralScorer(params=opened.params, weight=jnp.float32(weight), graphdef=opened.graphdef)


def _warn(text: str) -> None:
    if is_first():
        print(f"warning: {text}", file=sys.stderr)


def fusion_facts(options: FusionOptions) -> dict[str, str]:
    """The options that were given, for a report."""
    return {
        field.name.replace("_", " "): str(getattr(options, field.name))
        for field in fields(options)
        if getattr(options, field.name) != getattr(NO_FUSION_OPTIONS, field.name)
    }
