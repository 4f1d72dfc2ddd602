"""The corpus of a run: utterances to train on, their labels, noise and impulse responses."""

import contextlib
import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from asr_jax.config import Config, DataConfig, ObjectiveConfig, TokenizerConfig
from asr_jax.data.augment import read_untranscribed
from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.held_out import held_out
from asr_jax.data.labels import encode_transcripts
from asr_jax.data.manifest import read_manifest
from asr_jax.data.selection import Limits, select_utterances
from asr_jax.data.texts import SECONDS_PER_LABEL
from asr_jax.distributed.processes import first_process, is_first
from asr_jax.experiment.run_directory import holds_results
from asr_jax.features.frames import frame_count
from asr_jax.layers.length import subsampled
from asr_jax.text import Tokenizer, chosen_kind, folded
from asr_jax.types import Skipped, Utterance

# Reads a dataset: its utterances, and the recordings that cannot be read.
ReadDataset = Callable[[str], tuple[list[Utterance], list[Skipped]]]


def training_corpus(
    config: Config, run: Path, *, limits: Limits | None = None, read: ReadDataset = read_manifest
) -> tuple[Corpus, Tokenizer]:
    """Return the corpus of data.train and data.more_train, and the run's tokenizer.

    If the run has no tokenizer and results yet, the first process trains a tokenizer or takes over
    config.tokenizer.model. Its file has a temporary name until `keep_tokenizer`, so a start that
    fails leaves no tokenizer.
    Each dataset is read with `read`.
    """
    if not config.data.train:
        raise ValueError("data.train is empty: it must name a folder or a manifest")
    augment = config.augment
    noise, unreadable_noise = _recordings(augment.noise, "augment.noise", augment.noise_probability)
    responses, unreadable_responses = _recordings(
        augment.impulse_responses, "augment.impulse_responses", augment.impulse_response_probability
    )
    utterances, skipped, sizes = _utterances(config.data, read)
    transcripts = [utterance.text for utterance in utterances]
    tokenizer = _tokenizer(config, transcripts, run)
    labels = encode_transcripts(
        transcripts, tokenizer, cache_path=run / "labels.npz", write_cache=is_first()
    )
    usable, labels, unfit = usable_utterances(
        config, utterances, tokenizer, labels=labels, limits=limits
    )
    skipped += unfit
    corpus = Corpus(
        utterances=usable,
        labels=labels,
        skipped=[*skipped, *unreadable_noise, *unreadable_responses],
        sizes=_usable_sizes(config.data, sizes, utterances, usable, skipped),
        noise=noise,
        impulse_responses=responses,
        weights=config.data.train_weights,
        separator=tokenizer.separator,
    )
    if config.data.held_out_fraction and not config.data.dev:
        corpus = _without_held_out(corpus, config.data.held_out_fraction)
    return corpus, tokenizer


def _without_held_out(corpus: Corpus, fraction: float) -> Corpus:
    """Return the corpus, a part of whose first dataset is held out."""
    dev = held_out(corpus.utterances[: corpus.sizes[0]], fraction=fraction)
    kept = np.delete(np.arange(len(corpus.utterances)), dev).tolist()
    return corpus._replace(
        utterances=[corpus.utterances[n] for n in kept],
        labels=[corpus.labels[n] for n in kept],
        sizes=[corpus.sizes[0] - len(dev), *corpus.sizes[1:]],
        held_out=[corpus.utterances[n] for n in dev],
    )


def _tokenizer(config: Config, transcripts: list[str], run: Path) -> Tokenizer:
    path = run / "tokenizer.model"
    if not (path.exists() and holds_results(run, config.checkpoint)):
        path = run / "tokenizer.tmp"
        _new_tokenizer(config.tokenizer, transcripts, path)
    return Tokenizer.load(path)


def _usable_sizes(
    data: DataConfig,
    sizes: Sequence[int],
    utterances: Sequence[Utterance],
    usable: Sequence[Utterance],
    skipped: Sequence[Skipped],
) -> list[int]:
    """Return the number of usable utterances of each dataset; raise ValueError if one is zero."""
    names = [
        f"data.train = {data.train}",
        *(f"data.more_train = {more}" for more in data.more_train),
    ]
    usable_ids = {utterance.id for utterance in usable}
    usable_sizes = []
    for name, size, end in zip(names, sizes, itertools.accumulate(sizes)):
        ids = [utterance.id for utterance in utterances[end - size : end]]
        usable_sizes.append(sum(id in usable_ids for id in ids))
        if usable_sizes[-1] == 0:
            reasons = {utterance.id: utterance.reason for utterance in skipped}
            raise ValueError(
                f"{name}: none of its {size} utterances can be trained on, the first is "
                f"{ids[0]}: {reasons[ids[0]]}"
            )
    return usable_sizes


def limits_of(config: Config, buckets: Buckets | None) -> Limits:
    """Return the longest recording and transcript to train on.

    The buckets' limits count if there are buckets, and data.max_seconds if they are to be chosen.
    """
    is_language_model = config.objective.is_language_model
    if buckets:
        return Limits(math.inf if is_language_model else buckets.seconds[-1], buckets.labels[-1])
    if is_language_model:
        most_labels = round(config.data.max_seconds / SECONDS_PER_LABEL)
        return Limits(math.inf, most_labels, f"data.max_seconds / {SECONDS_PER_LABEL:g} s,")
    return Limits(config.data.max_seconds, math.inf, "data.max_seconds,")


def usable_utterances(
    config: Config,
    utterances: Sequence[Utterance],
    tokenizer: Tokenizer,
    *,
    limits: Limits | None = None,
    labels: Sequence[np.ndarray] | None = None,
) -> tuple[list[Utterance], list[np.ndarray], list[Skipped]]:
    """Select utterances by the limits and the config's encoder and objective (select_utterances).

    For a language model, recordings may have any length.
    """
    is_language_model = config.objective.is_language_model

    def frames_of(seconds: np.ndarray) -> np.ndarray:
        if is_language_model:
            return np.ones(len(seconds), np.int64)
        samples = np.round(seconds * config.features.sample_rate_hz).astype(np.int64)
        frames = frame_count(samples, config.features)
        encoder = config.encoder
        return subsampled(frames, encoder.subsampling_factor, lead=encoder.subsampling_lead)

    return select_utterances(
        utterances,
        tokenizer,
        min_seconds=0.0 if is_language_model else config.data.min_seconds,
        min_confidence=config.data.min_confidence,
        limits=limits or limits_of(config, Buckets.of(config.data)),
        frames_of=frames_of,
        ctc=_ctc_head(config.objective),
        labels=labels,
    )


def _ctc_head(objective: ObjectiveConfig) -> Literal["none", "auxiliary", "alone"]:
    if objective.kind == "ctc":
        return "alone"
    return "auxiliary" if objective.has_ctc_head else "none"


@first_process
def _new_tokenizer(config: TokenizerConfig, transcripts: list[str], path: Path) -> None:
    train = functools.partial(
        Tokenizer.train, transcripts, path=path, normalization=config.normalization
    )
    if config.model:
        given = Tokenizer.load(config.model)
        path.write_bytes(given.with_pieces(config.added_pieces).model)
    elif config.kind == "auto":
        kind, size = chosen_kind(folded(transcripts, config.normalization))
        try:
            train(kind=kind, vocabulary_size=size)
        except ValueError:  # a few words, repeated, do not have that many pieces
            train(kind="char", vocabulary_size=0)
    else:
        train(kind=config.kind, vocabulary_size=config.vocabulary_size)


def with_chosen_tokenizer(config: Config, tokenizer: Tokenizer) -> Config:
    """Return the config in which the run's tokenizer replaces the kind `auto`.

    The normalization of a tokenizer.model that is given is its own. Raises ValueError if the config
    states another.
    """
    chosen, given = config.tokenizer, config.tokenizer.model
    if given and chosen.normalization not in ("none", tokenizer.normalization):
        raise ValueError(
            f"tokenizer.normalization = {chosen.normalization!r}: must be none, or "
            f"{tokenizer.normalization!r}, which is that of tokenizer.model = {given}"
        )
    if given:
        chosen = replace(chosen, normalization=tokenizer.normalization)
    if chosen.kind == "auto":
        chosen = replace(chosen, kind=tokenizer.kind, vocabulary_size=tokenizer.vocabulary_size)
    return replace(config, tokenizer=chosen)


def _recordings(
    folder: str, name: str, probability: float
) -> tuple[list[Utterance], list[Skipped]]:
    return read_untranscribed(folder, name) if folder and probability > 0 else ([], [])


def _utterances(
    data: DataConfig, read: ReadDataset
) -> tuple[list[Utterance], list[Skipped], list[int]]:
    """Return the utterances of all datasets in order, those left out, and the datasets' sizes.

    Ids and speakers of data.more_train are prefixed, so that those of two datasets never coincide.
    """
    utterances, skipped = read(data.train)
    sizes = [len(utterances)]
    for number, dataset in enumerate(data.more_train, start=1):
        more, unreadable = read(dataset)
        utterances += [
            u._replace(id=f"{number}:{u.id}", speaker=u.speaker and f"{number}:{u.speaker}")
            for u in more
        ]
        skipped += [replace(left, id=f"{number}:{left.id}") for left in unreadable]
        sizes.append(len(more))
    if data.more_train and len({utterance.id for utterance in utterances}) < len(utterances):
        raise ValueError(
            f"data.train = {data.train}: has ids of the form 1:ID, reserved for data.more_train"
        )
    return utterances, skipped, sizes


@first_process
def keep_tokenizer(run: Path) -> None:
    """Rename a tokenizer that was just trained to its final name."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(run / "tokenizer.tmp", run / "tokenizer.model")
