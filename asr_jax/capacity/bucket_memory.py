"""The memory and the shortest possible time of a training step, for each bucket."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from asr_jax.capacity.accelerators import Accelerator, Device
from asr_jax.capacity.collectives import Collective, collectives
from asr_jax.capacity.flops import model_flops
from asr_jax.config import Config
from asr_jax.distributed.mesh import BATCH
from asr_jax.models.composition import split_model
from asr_jax.training.objective import utterance_losses
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import TrainState, abstract_state
from asr_jax.training.step import augmented_features, cast, jitted_step
from asr_jax.types import Batch


class BucketFit(NamedTuple):
    """One bucket's step. Bytes and FLOPs are per device; utterances are those of all devices."""

    seconds: float
    labels: int
    utterances: int
    parameters_bytes: int
    """The parameters and their average."""
    optimizer_bytes: int
    activations_bytes: int
    """Tensors that the forward pass saves for the backward pass; part of temporary_bytes."""
    temporary_bytes: int | None
    """Everything allocated within a step; None if the compiler ran out of memory."""
    memory_bytes: int | None
    """Peak memory by the compiler's account."""
    limit_bytes: float
    """Memory available to a program; infinite if unknown."""
    fits: bool
    model_flops: int
    """Operations of the padded batch, without recomputation."""
    collectives: dict[str, Collective]
    least_step_seconds: float | None
    """An estimate at the accelerator's published rates, which no real step reaches."""


class Target(NamedTuple):
    """Devices to compile for."""

    devices: list[Device]
    accelerator: Accelerator | None
    """Published rates of these devices; None if unknown."""
    limit_bytes: float
    """Memory available to a program on each device; infinite if unknown."""


class StepSetup(NamedTuple):
    """The part of a training step that does not depend on the bucket."""

    config: Config
    vocabulary_size: int
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation
    abstract: TrainState
    mesh: Mesh
    target: Target


def step_setup(config: Config, vocabulary_size: int, mesh: Mesh, target: Target) -> StepSetup:
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    abstract = abstract_state(config, vocabulary_size, optimizer, mesh)
    graphdef, _ = split_model(config, vocabulary_size)
    return StepSetup(config, vocabulary_size, graphdef, optimizer, abstract, mesh, target)


def fit_bucket(setup: StepSetup, shape: Batch, *, seconds: float) -> BucketFit:
    """Compile the step for batches of this shape, with recordings of up to `seconds`."""
    config, vocabulary_size, _, _, abstract, mesh, target = setup
    rows, labels = shape.labels.shape
    activations = _activations_bytes(setup, shape)
    flops = model_flops(config, vocabulary_size, rows=rows, seconds=seconds, labels=labels)
    compiled = _compile(setup, shape)
    memory, temporary = compiled.memory_bytes, compiled.temporary_bytes
    return BucketFit(
        seconds=seconds,
        labels=labels,
        utterances=rows,
        parameters_bytes=_bytes_on_a_device((abstract.params, abstract.averaged)),
        optimizer_bytes=_bytes_on_a_device(abstract.optimizer),
        activations_bytes=activations,
        temporary_bytes=temporary,
        memory_bytes=memory,
        limit_bytes=target.limit_bytes,
        fits=temporary is not None and (memory or 0) <= target.limit_bytes,
        model_flops=sum(flops.values()) // mesh.size,
        collectives=compiled.collectives,
        least_step_seconds=_least_seconds(setup, flops, compiled.collectives, activations),
    )


class _CompiledStep(NamedTuple):
    """The compiler's account of a step; temporary_bytes is None if it ran out of memory."""

    memory_bytes: int | None
    temporary_bytes: int | None
    collectives: dict[str, Collective]


def _compile(setup: StepSetup, shape: Batch) -> _CompiledStep:
    config, _, graphdef, optimizer, abstract, mesh, _ = setup
    step = jitted_step(config, graphdef, optimizer, abstract, mesh)
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            compiled = step.lower(abstract, shape).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _CompiledStep(_memory_asked_for(str(error)), None, {})
    analysis = compiled.memory_analysis()
    assert analysis is not None
    temporary = analysis.temp_size_in_bytes
    memory = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + temporary
    memory -= analysis.alias_size_in_bytes
    return _CompiledStep(memory, temporary, collectives(compiled.as_text() or ""))


def largest_batch(fit: Callable[[int], BucketFit], *, start: int, unit: int) -> BucketFit:
    """Search for about the largest number of utterances, a multiple of `unit`, that fits.

    Memory grows almost linearly with the batch, so the tries so far predict the next one, aiming
    5 % below the limit. The first try is `start`. The search ends if a step takes 85 % of the
    limit, or if one more unit does not fit. If nothing fits, the smallest try is returned.
    """
    tried: dict[int, BucketFit] = {}
    rows = max(unit, start // unit * unit)
    while rows not in tried:
        bucket = tried[rows] = fit(rows)
        if bucket.fits and (bucket.memory_bytes or 0) >= 0.85 * bucket.limit_bytes:
            break
        fitting = [0, *(r for r in tried if tried[r].fits)]
        too_many = [r for r in tried if not tried[r].fits]
        if bucket.memory_bytes is None:
            rows = (max(fitting) + rows) // 2 // unit * unit
        else:
            rows = _near_the_limit(list(tried.values())) // unit * unit
        rows = max(rows, max(fitting) + unit)
        if too_many:
            rows = max(unit, min(rows, min(too_many) - unit))
    return max(tried.values(), key=lambda f: f.utterances if f.fits else -f.utterances)


def _near_the_limit(tried: list[BucketFit]) -> int:
    """Return where a line through the last two tries, or one and the state, nears the limit."""
    last = tried[-1]
    state_bytes = last.parameters_bytes + last.optimizer_bytes
    points = [(0, state_bytes), *((f.utterances, f.memory_bytes) for f in tried if f.memory_bytes)]
    (low, low_bytes), (high, high_bytes) = sorted(points[-2:])
    if high_bytes <= low_bytes:
        return last.utterances * 2 if last.fits else last.utterances // 2
    aim = 0.95 * last.limit_bytes
    return int(high + (aim - high_bytes) * (high - low) / (high_bytes - low_bytes))


def with_rows(shape: Batch, rows: int) -> Batch:
    """Return the bucket's batch with another number of utterances."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((rows, *a.shape[1:]), a.dtype), shape)


def _bytes_on_a_device(tree: PyTree) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _itemsize(leaf)
        for leaf in jax.tree.leaves(tree)
    )


def _itemsize(leaf: jax.ShapeDtypeStruct) -> int:
    return getattr(leaf.dtype, "itemsize", 4)


def _activations_bytes(setup: StepSetup, shape: Batch) -> int:
    """Return the bytes that the forward pass keeps, of one micro-batch on one device."""
    config, mesh, dtype = setup.config, setup.mesh, setup.config.train.compute_dtype

    def residuals(params, batch, key):
        features, lengths = augmented_features(batch, key, config=config, mesh=mesh)

        def losses(params):
            return utterance_losses(
                nnx.merge(setup.graphdef, cast(params, dtype)),
                features.astype(dtype),
                lengths,
                batch.labels,
                batch.label_lengths,
                config=config,
                key=key,
            )

        return jax.vjp(losses, params)[1]

    def traced_bytes(rows: int) -> int:
        key = jax.eval_shape(lambda: jax.random.key(0))
        kept = jax.eval_shape(residuals, setup.abstract.params, with_rows(shape, rows), key)
        return sum(math.prod(a.shape) * _itemsize(a) for a in jax.tree.leaves(kept))

    # The difference leaves out the parameters, which do not grow with the batch.
    shards = math.prod(mesh.shape[axis] for axis in BATCH[0])
    return (
        (traced_bytes(2 * shards) - traced_bytes(shards))
        * (len(shape.labels) // shards // config.train.accumulate)
        // shards
    )


def _least_seconds(
    setup: StepSetup, flops: dict[str, int], sent: dict[str, Collective], activations_bytes: int
) -> float | None:
    """Return the longest of computing, sending, and reading and writing memory."""
    config, accelerator = setup.config, setup.target.accelerator
    if accelerator is None or config.train.compute_dtype != "bfloat16":
        return None
    again = {"joint and loss"}  # the loss computes its logits twice
    if config.encoder.remat == "layer":
        again |= {"feed-forward", "attention", "convolution"}
    computed = sum(count * (4 / 3 if part in again else 1) for part, count in flops.items())
    # A ring sends the bytes of a sum twice, those of a gather's result once.
    sent_bytes = sum(
        (2 if kind == "all-reduce" else 1) * amount.bytes for kind, amount in sent.items()
    )
    # The new state overwrites the old one.
    state_bytes = _bytes_on_a_device(setup.abstract)
    moved_bytes = 2 * state_bytes + 2 * config.train.accumulate * activations_bytes
    return max(
        computed / setup.mesh.size / (accelerator.bfloat16_tflops * 1e12),
        sent_bytes / (accelerator.link_gb_per_second * 1e9),
        moved_bytes / (accelerator.memory_gb_per_second * 1e9),
    )


def _memory_asked_for(message: str) -> int | None:
    """Parse the compiler's out-of-memory message: `Used 23.40G of 15.75G hbm`."""
    if not (used := re.search(r"Used ([\d.]+)([KMG]) of", message)):
        return None
    return int(float(used[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[used[2]])
