"""`asr-jax fit CONFIG`: check that every bucket's step fits the devices, without training."""

import dataclasses
import functools
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro

from asr_jax.capacity.accelerators import accelerator_of, target_devices
from asr_jax.capacity.bucket_memory import (
    BucketFit,
    StepSetup,
    Target,
    fit_bucket,
    largest_batch,
    step_setup,
    with_rows,
)
from asr_jax.commands.arguments import parse_after_config
from asr_jax.config import Config
from asr_jax.data.buckets import Buckets
from asr_jax.data.manifest import require_exists
from asr_jax.distributed.compile_notices import logged_compile_notices
from asr_jax.distributed.devices import prepare_devices
from asr_jax.distributed.mesh import check_batch, make_mesh, utterance_shards
from asr_jax.errors import UsageError
from asr_jax.experiment.batch_shapes import batch_shapes
from asr_jax.experiment.corpus import training_corpus
from asr_jax.experiment.training_buckets import (
    assumed_buckets,
    buckets_for,
    training_lengths,
)
from asr_jax.text import Tokenizer
from asr_jax.types import Batch

# libtpu would query these from a cloud machine, which this machine need not be.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
_COLUMNS = (
    "seconds | labels | utterances | parameters | optimizer | activations | temporaries | memory | "
    "fits | TFLOP | sent | least time"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Compile the training step of every bucket of CONFIG, and print its memory and time."""

    target: str = ""
    """Accelerator to compile for: h100, h200, a100-40, a100-80, v5e or v6e, with -COUNT for several
    devices (h200-8, v5e-256). Default: the devices of this machine."""
    largest: bool = False
    """Search for the largest batch of each bucket that fits, instead of the config's."""
    json: bool = False
    """Print JSON instead of a table."""
    config: Annotated[Config, tyro.conf.arg(name="")]


@logged_compile_notices()
def run(arguments: list[str]) -> int:
    _, options = parse_after_config(Options, arguments, program="asr-jax fit")
    if options.config.objective.is_language_model:
        raise UsageError("objective.kind = 'language_model': fit supports speech recognizers only")
    target = _target(options.config, options.target)
    buckets, batch_seconds = _fit_buckets(options, target)
    if options.json:
        print(json.dumps(list(map(_as_json, buckets)), indent=1))
        return 0
    _explain(options, target, buckets, batch_seconds)
    return 0 if all(bucket.fits for bucket in buckets) else 1


def _target(config: Config, name: str) -> Target:
    """Return the devices of this name, or those of this machine if it is empty."""
    if name:
        # Without it, JAX requires libraries for running on a GPU, and omits the GPU compiler.
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    prepare_devices(config.mesh)
    if name:
        for variable, value in _NO_TPU_HERE.items():
            os.environ.setdefault(variable, value)
        devices, accelerator = target_devices(name)
        return Target(devices, accelerator, accelerator.memory_bytes)
    devices = jax.devices()
    statistics = devices[0].memory_stats() or {}
    limit = float(statistics.get("bytes_limit", math.inf))
    if devices[0].platform == "cpu":
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    return Target(devices, accelerator_of(devices[0]), limit)


def _fit_buckets(options: Options, target: Target) -> tuple[list[BucketFit], int | None]:
    """Return the fit of every bucket, and with --largest the data.batch_seconds that fits."""
    config = options.config
    mesh = make_mesh(config.mesh, target.devices)
    if options.largest and target.limit_bytes == math.inf:
        kind = target.devices[0].device_kind
        raise UsageError(f"--largest: the memory of {kind} is unknown; pass --target")
    if not options.largest:
        for utterances in config.data.bucket_utterances:
            check_batch(utterances, mesh, config.train.accumulate)
    unit = utterance_shards(mesh) * config.train.accumulate
    buckets_at, vocabulary_size = _buckets(config, unit)
    buckets = buckets_at(config.data.batch_seconds)
    setup = step_setup(config, vocabulary_size, mesh, target)
    fits = []
    for shape, seconds in zip(batch_shapes(config, buckets), buckets.seconds):
        fit, rows = functools.partial(_fit_rows, setup, shape, seconds), len(shape.labels)
        fits.append(largest_batch(fit, start=rows, unit=unit) if options.largest else fit(rows))
    _note("")
    if not options.largest or config.data.bucket_seconds or not all(f.fits for f in fits):
        return fits, None
    return fits, _largest_batch_seconds(fits, buckets_at)


def _buckets(config: Config, parts: int) -> tuple[Callable[[float], Buckets], int]:
    """Return a function from data.batch_seconds to the buckets, and the vocabulary size."""
    if stated := Buckets.of(config.data):
        return lambda _: stated, _vocabulary_size(config)
    datasets = [config.data.train, *config.data.more_train]
    if missing := [dataset for dataset in datasets if not _exists(dataset)]:
        print(
            f"{missing[0] or 'data.train'}: not found; assuming recordings of data.max_seconds = "
            f"{config.data.max_seconds:g} s",
            file=sys.stderr,
        )

        def assumed(seconds: float) -> Buckets:
            return assumed_buckets(_with_batch_seconds(config, seconds), parts=parts)

        return assumed, _vocabulary_size(config)
    with tempfile.TemporaryDirectory() as folder:
        corpus, tokenizer = training_corpus(config, Path(folder))
    lengths, size = training_lengths(config, corpus), tokenizer.vocabulary_size

    def chosen(seconds: float) -> Buckets:
        return buckets_for(_with_batch_seconds(config, seconds), lengths, size, parts=parts)

    return chosen, size


def _exists(dataset: str) -> bool:
    try:
        require_exists(dataset)
    except ValueError:
        return False
    return bool(dataset)


def _with_batch_seconds(config: Config, seconds: float) -> Config:
    data = dataclasses.replace(config.data, batch_seconds=seconds)
    return dataclasses.replace(config, data=data)


def _largest_batch_seconds(fits: list[BucketFit], buckets_at: Callable[[float], Buckets]) -> int:
    """Return about the largest data.batch_seconds whose batches are no larger than those that fit.

    Other seconds may give other buckets. Between two that were tried, the audio that fits is
    interpolated.
    """
    edges = np.array([fit.seconds for fit in fits])
    audio_seconds = edges * np.array([fit.utterances for fit in fits])
    seconds = max(1, int(audio_seconds.max()))
    while seconds > 1:
        buckets = buckets_at(float(seconds))
        filled = np.multiply(buckets.seconds, buckets.utterances)
        allowed = np.interp(buckets.seconds, edges, audio_seconds)
        if np.all(filled <= 1.001 * allowed):
            break
        # A large step if much is too much, and at last small ones.
        seconds = min(seconds - 1, max(int(0.9 * seconds), int(seconds * min(allowed / filled))))
    return seconds


def _fit_rows(setup: StepSetup, shape: Batch, seconds: float, utterances: int) -> BucketFit:
    _note(f"compiling {utterances} utterances of {seconds:g} s ...")
    return fit_bucket(setup, with_rows(shape, utterances), seconds=seconds)


def _vocabulary_size(config: Config) -> int:
    """Return the vocabulary size of the tokenizer, existing or still to be trained."""
    if config.tokenizer.model:
        return Tokenizer.load(Path(config.tokenizer.model)).vocabulary_size
    size = config.tokenizer.vocabulary_size
    if config.tokenizer.kind in ("char", "auto"):
        print(
            f"assuming {size} pieces, as their number is only known from the transcripts; "
            "pass --tokenizer.vocabulary-size to change it",
            file=sys.stderr,
        )
    return size


def _note(text: str) -> None:
    """Show a line that the next one replaces, if standard error is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _explain(
    options: Options, target: Target, buckets: list[BucketFit], batch_seconds: int | None
) -> None:
    config, (devices, _, limit_bytes) = options.config, target
    limit = "an unknown part" if limit_bytes == math.inf else f"{limit_bytes / 1e9:.1f} GB"
    print(
        f"{len(devices)} x {devices[0].device_kind}, a program may use {limit} of the memory of "
        f"each; {config.train.compute_dtype}, encoder.remat {config.encoder.remat}, "
        f"train.accumulate {config.train.accumulate}\n"
    )
    print(table(buckets))
    print(
        "\nMemory, TFLOP (of the model, padding included) and sent bytes are per device, in GB. "
        "Parameters include\ntheir average; activations are kept for the backward pass, and are "
        "part of the temporaries. The least\ntime is an estimate at published rates, which no real "
        "step reaches."
    )
    if batch_seconds:
        print(f"\nThe largest batch that fits: --data.batch-seconds {batch_seconds}")
    elif options.largest and all(bucket.fits for bucket in buckets):
        utterances = " ".join(str(bucket.utterances) for bucket in buckets)
        print(f"\nThe largest batches that fit: --data.bucket-utterances {utterances}")
    elif not all(bucket.fits for bucket in buckets):
        print(
            "\nNot every bucket fits. --largest searches for batches that do; --train.accumulate "
            "splits a batch into\nparts; --mesh.fsdp splits parameters and optimizer over devices."
        )


def table(buckets: list[BucketFit]) -> str:
    """Return a Markdown table with a row for each bucket."""
    rows = [_COLUMNS.split(" | "), *map(_row, buckets)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    rows.insert(1, ["-" * (width - 1) + ":" for width in widths])
    padded = ([cell.rjust(width) for cell, width in zip(row, widths)] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def _row(bucket: BucketFit) -> list[str]:
    sent = ", ".join(
        f"{amount.count} {kind} {amount.bytes / 1e9:.2f}"
        for kind, amount in bucket.collectives.items()
    )
    least = bucket.least_step_seconds
    return [
        f"{bucket.seconds:g}",
        str(bucket.labels),
        str(bucket.utterances),
        _gigabytes(bucket.parameters_bytes),
        _gigabytes(bucket.optimizer_bytes),
        _gigabytes(bucket.activations_bytes),
        _gigabytes(bucket.temporary_bytes),
        _gigabytes(bucket.memory_bytes),
        "yes" if bucket.fits else "no",
        f"{bucket.model_flops / 1e12:.2f}",
        sent or "nothing",
        "?" if least is None else f"{1e3 * least:.0f} ms",
    ]


def _gigabytes(count: int | None) -> str:
    return "?" if count is None else f"{count / 1e9:.2f}"


def _as_json(bucket: BucketFit) -> dict[str, object]:
    sent = {kind: amount._asdict() for kind, amount in bucket.collectives.items()}
    limit = None if bucket.limit_bytes == math.inf else bucket.limit_bytes
    return bucket._asdict() | {"collectives": sent, "limit_bytes": limit}
