"""The buckets of a run's batches: stated by the config, kept by the run, or chosen by the data."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from asr_jax.capacity.flops import utterance_work
from asr_jax.config import Config
from asr_jax.data.buckets import BatchSize, Buckets, Cost, choose_buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.plan import ExpectedLengths, TrainingPlan, expected_lengths
from asr_jax.data.texts import SECONDS_PER_LABEL
from asr_jax.distributed.mesh import utterance_shards
from asr_jax.errors import UsageError
from asr_jax.experiment.tasks import task_of
from asr_jax.inference.decode_batch import encoded_frame_seconds
from asr_jax.training.checkpoint import SavedMetadata, newest_metadata

# A training step's program takes about as long to compile as this many steps to run: 27 s and 0.1 s
# for configs/quickstart.py on two cores.
TRAINING_COMPILE_BATCHES = 250.0
# Batches of this multiple divide over 1, 2, 4 or 8 devices.
PREFERRED_MULTIPLE = 8
# Labels per second of English that is read fast: pieces of a vocabulary of 1024, and characters.
LABELS_PER_SECOND = (6, 20)


def kept_buckets(config: Config, run: Path) -> Buckets | None:
    """Return the buckets that a config states or a run has; None if they are to be chosen."""
    stated = Buckets.of(config.data)
    saved = None if stated else newest_metadata(run, config.checkpoint)
    return saved_buckets(saved[1]) if saved else stated


def saved_buckets(saved: SavedMetadata) -> Buckets | None:
    """Return the buckets in a checkpoint's metadata; None if there are none."""
    # Earlier versions have saved the config alone, which stated the buckets.
    config = saved.get("config", {})
    stated: Any = [config.get(f"data.bucket_{name}") for name in Buckets._fields]
    columns: Any = saved.get("buckets", stated)
    return Buckets(*map(tuple, columns)) if all(columns) else None


def training_lengths(config: Config, corpus: Corpus) -> ExpectedLengths:
    """Return the lengths that the utterances of a corpus have in training.

    An utterance may become as long as speed and tempo make it, up to data.max_seconds; a pair of
    joined utterances, as long as the longest single one.
    """
    slowest = min(config.augment.speeds) * min(1.0, config.augment.tempo_range[0])
    longest = float(corpus.durations_seconds().max())
    seconds = max(longest, min(config.data.max_seconds, longest / slowest))
    widest = Buckets((seconds,), (int(corpus.label_lengths().max()),), (1,))
    # The shapes must not depend on the seed.
    of_any_seed = replace(config, train=replace(config.train, seed=0))
    lengths = expected_lengths(task_of(config).plan(of_any_seed, corpus, widest))
    if config.objective.is_language_model:
        return lengths._replace(seconds=lengths.labels * SECONDS_PER_LABEL)
    return lengths


def buckets_for(
    config: Config, lengths: ExpectedLengths, vocabulary_size: int, *, parts: int
) -> Buckets:
    """Return the buckets for utterances of these lengths (choose_buckets).

    The number of utterances in a batch is a multiple of `parts`.
    """
    seconds, labels, epochs = lengths
    work = utterance_work(config, vocabulary_size, labels_per_second=labels.sum() / seconds.sum())
    accumulate = config.train.accumulate
    return choose_buckets(
        seconds,
        labels,
        cost=Cost(
            work,
            encoded_frame_seconds(config),
            batches=config.train.steps,
            compile_batches=TRAINING_COMPILE_BATCHES,
        ),
        size=BatchSize(config.data.batch_seconds, parts, PREFERRED_MULTIPLE * accumulate),
        number=config.data.buckets,
        repeats=epochs,
    )


def assumed_buckets(config: Config, *, parts: int) -> Buckets:
    """Return one bucket for the longest recordings that a config allows, for an unknown dataset."""
    longest, accumulate = config.data.max_seconds, config.train.accumulate
    size = BatchSize(config.data.batch_seconds, parts, PREFERRED_MULTIPLE * accumulate)
    (rows,) = size.rows(np.array([size.seconds / longest]), math.inf).tolist()
    labels_per_second = LABELS_PER_SECOND[config.tokenizer.kind == "char"]
    return Buckets((longest,), (round(longest * labels_per_second),), (rows,))


def check_buckets(buckets: Buckets, config: Config, mesh: Mesh, run: Path) -> None:
    """Raise UsageError unless the devices divide every batch."""
    accumulate = config.train.accumulate
    shards = utterance_shards(mesh)
    common = math.gcd(*buckets.utterances) // accumulate
    if common % shards:
        rows = _listed(list(dict.fromkeys(map(str, buckets.utterances))))
        numbers = [str(n) for n in range(1, common + 1) if common % n == 0]
        raise UsageError(
            f"--run {run}: its batches have {rows} utterances, which divide over "
            f"{_listed(numbers)} devices with train.accumulate {accumulate}, not over mesh.data x "
            f"mesh.fsdp = {shards}"
        )


def describe_buckets(
    plan: TrainingPlan, *, is_language_model: bool, steps: int | None = None
) -> list[str]:
    """Return a table of a plan's buckets, with their batches in an epoch and their padding.

    Given the `steps` of a run, the last line says how many epochs they are.
    """
    # An epoch of small weights may have no batches.
    batches = next(filter(None, map(plan.batches, itertools.count())))
    lines, real, padded = ["up to    labels  utterances  batches  padding"], 0.0, 0.0
    for edge, most_labels, rows in zip(*plan.buckets):
        planned = [b for b in batches if b.seconds == edge and b.labels == most_labels]
        if is_language_model:
            filled = sum(int(plan.label_lengths[b.first[b.first >= 0]].sum()) for b in planned)
            whole = len(planned) * rows * most_labels
        else:
            filled = sum(float(plan.row_seconds(b).sum()) for b in planned)
            whole = len(planned) * rows * edge
        real, padded = real + filled, padded + whole
        lines.append(
            f"{'-' if is_language_model else f'{edge:.2f} s':<7}  {most_labels:>6}  {rows:>10}  "
            f"{len(planned):>7}  {1 - filled / whole if whole else 0:>7.0%}"
        )
    shapes = f"{len(lines) - 1} shape{'s' * (len(lines) > 2)}"
    table = [f"batches of {shapes}, {1 - real / padded:.1%} padding:", *lines]
    return table if steps is None else [*table, _describe_epoch(len(batches), steps)]


def _describe_epoch(batches: int, steps: int) -> str:
    epoch = f"an epoch is {batches} batch{'es' * (batches > 1)}, and train.steps = {steps}"
    if steps < batches:
        return f"warning: {epoch}: some utterances will not be trained on"
    return f"{epoch} is about {steps / batches:.0f} epoch{'s' * (steps >= 1.5 * batches)}"


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
