"""Packed rows against buckets at their best: the encoder's forward and backward pass.

    python benchmarks/packed_rows.py [--librispeech FOLDER] [--target h200] [--json FILE]
        [--parts exact quickstart librispeech] [--rounds N] [--return-memory]

A batch of buckets pads its utterances to one of a few shapes. A packed batch has one shape, rows of
T frames, and each row holds several utterances. The script proves that both compute the same, then
compares them at about equal seconds of audio for each step: the processor time of the quick start's
training steps and of their compilation on this machine, and for Conformer-L the operations and,
compiled for an accelerator that need not be there, the temporaries of the encoder's gradients.

Edges of buckets come from dynamic programming over the lengths after speeds and tempos, and rows of
a bucket times its edge are about the same for all buckets. Without FOLDER, whose durations are
taken if it is given, lengths are drawn from a distribution like LibriSpeech's: 1 to 24.5 s, mostly
12 to 16 s, 12.3 s in the mean.
"""

import argparse
import bisect
import functools
import gc
import itertools
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from asr_jax.capacity.accelerators import target_devices
from asr_jax.config import Config
from asr_jax.config_file import load_config
from asr_jax.data.manifest import read_transcribed
from asr_jax.distributed.mesh import make_mesh
from asr_jax.experiment.batch_shapes import batch_shapes
from asr_jax.features.frames import frame_count
from asr_jax.layers.attention import BLOCK_FRAMES, _attend_rotated, in_blocks, relative_positions
from asr_jax.layers.dropout import dropout
from asr_jax.layers.subsampling import Subsampling1D, _taps, rectify
from asr_jax.models.composition import split_model
from asr_jax.models.encoder import _REMAT, Encoder
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import abstract_state, initial_state
from asr_jax.training.step import cast, jitted_step

ROOT = Path(__file__).resolve().parent.parent
FRAME_SECONDS = 0.04
KEPT = "operations", "temporaries", "compiling"


# ---------------------------------------------------------------- lengths, buckets and the planner


def librispeech_like(number: int, rng: np.random.Generator) -> np.ndarray:
    """Draw durations: a peak below 16 s, a long flank of shorter ones, and a few longer ones."""
    kind = rng.random(number)
    peak = np.clip(rng.normal(14.7, 1.2, number), 11, 17.2)
    flank, tail = rng.triangular(1, 11, 13.5, number), rng.uniform(16.5, 24.5, number)
    return np.where(kind < 0.62, peak, np.where(kind < 0.98, flank, tail))


def drawn_frames(
    seconds: np.ndarray, config: Config, longest: float, rng: np.random.Generator
) -> np.ndarray:
    """Return features of utterances after draws of speed and tempo, of at most `longest` s."""
    low, high = np.log(config.augment.tempo_range)
    pace = rng.choice(np.array(config.augment.speeds), len(seconds))
    pace = pace * np.exp(rng.uniform(low, high, len(seconds)))
    drawn = np.where(seconds / pace <= longest, seconds / pace, seconds)
    samples = np.rint(drawn * config.features.sample_rate_hz).astype(int)
    return np.maximum(frame_count(samples, config.features), 1)


def best_edges(lengths: np.ndarray, number: int, power: int = 1) -> list[int]:
    """Return the upper edges that minimize the sum of edge ** power over all lengths."""
    values, counts = np.unique(lengths, return_counts=True)
    below = np.concatenate([[0], np.cumsum(counts)])
    # cost[i, j]: values i to j - 1 share the edge values[j - 1].
    cost = (below[None, 1:] - below[:-1, None]) * values[None] ** float(power)
    cost = np.where(np.arange(len(values))[:, None] <= np.arange(len(values)), cost, np.inf)
    best, choices = cost[0], []
    for _ in range(number - 1):
        total = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
        choices.append(total.argmin(0))
        best = total.min(0)
    edges, j = [], len(values) - 1
    for choice in reversed(choices):
        edges.append(int(values[j]))
        j = int(choice[j]) - 1
    return [*reversed([*edges, int(values[j])])]


class Template(NamedTuple):
    """The one shape of packed batches: rows, and slots into which attention gathers utterances.

    Without slots, attention masks the pairs of two utterances in a row. With `pieces`, there is one
    row, an utterance stays within a piece of it, and attention masks pairs within each piece.
    """

    rows: int
    frames: int
    slots: tuple[tuple[int, int], ...] = ()
    """Length and number of the slots, from the shortest on."""
    gap: int = 1
    """Masked frames between utterances."""
    pieces: tuple[tuple[int, int], ...] = ()
    """Length and number of the pieces, from the longest on."""

    @property
    def spaces(self) -> list[int]:
        """The frames that are filled one after the other: rows, or pieces of the one row."""
        pieces = self.pieces or ((self.frames, self.rows),)
        return [length for length, number in pieces for _ in range(number)]


def slots_for(lengths: np.ndarray, utterances: float, groups: int, slack: float):
    """Return slots for batches of about so many utterances, with some to spare."""
    edges = best_edges(lengths, groups, power=2)
    shares = np.diff(np.searchsorted(np.sort(lengths), [0, *edges], side="right")) / len(lengths)
    # Spare slots are whole utterances; every group has at least one.
    return tuple(
        (edge, max(1, math.ceil(share * utterances * (1 + slack))))
        for edge, share in zip(edges, shares)
    )


def packed(
    lengths: np.ndarray, template: Template, window: int
) -> Iterator[list[list[tuple[int, int]]]]:
    """Yield batches: for each row (index, slot group) of its utterances, in their order.

    Best fit over a window of the shuffled lengths: the oldest utterance of the window opens a row,
    and then the longest follows that fits into the row and into a free slot.
    """
    edges = [edge for edge, _ in template.slots] or [template.frames]
    pool: list[tuple[int, int]] = []
    coming = iter(enumerate(lengths.tolist()))
    waiting: dict[int, int] = {}
    while True:
        free = [number for _, number in template.slots] or [10**9]
        batch = []
        for space in template.spaces:
            row, left = [], space
            while True:
                for index, length in itertools.islice(coming, window - len(pool)):
                    bisect.insort(pool, (length, index))
                    waiting[index] = length
                if len(pool) < window:
                    return
                open_edges = [edge for edge, number in zip(edges, free) if number]
                most = min(left, open_edges[-1]) if open_edges else 0
                oldest = next(iter(waiting))
                if not row and waiting[oldest] <= most:
                    length, index = waiting[oldest], oldest
                else:
                    place = bisect.bisect(pool, (most, 10**9)) - 1
                    if place < 0:
                        break
                    length, index = pool[place]
                pool.remove((length, index))
                del waiting[index]
                group = next(g for g, edge in enumerate(edges) if free[g] and length <= edge)
                free[group] -= 1
                row.append((index, group))
                left -= length + template.gap
            batch.append(row)
        yield batch


class Layout(NamedTuple):
    """Where the utterances of a packed batch are."""

    utterance: Any
    """Utterance of each encoded frame, counted within the batch; -1 for none, [R, T]."""
    reach: Any
    """Frames of the same utterance before and after each frame, [2, R, T]."""
    is_real: Any
    """Features that are real, [R, 4 T]."""
    frame_of_slot: Any
    """For each frame of the slots, one group after the other, its packed frame; -1 for none."""
    slot_of_frame: Any
    """For each packed frame its place in the slots; -1 for none."""


def layout(
    batch: list[list[tuple[int, int]]], features: np.ndarray, template: Template
) -> tuple[Layout, list[tuple[int, int, int]]]:
    """Return the layout, and the index, the row and the first frame of each utterance."""
    shape = template.rows, template.frames
    utterance, reach = np.full(shape, -1, np.int32), np.zeros((2, *shape), np.int32)
    is_real = np.zeros((shape[0], 4 * shape[1]), bool)
    starts = np.cumsum([0, *(edge * number for edge, number in template.slots)])
    frame_of_slot = np.full(starts[-1], -1, np.int32)
    slot_of_frame = np.full(shape[0] * shape[1], -1, np.int32)
    used, places = [0] * len(template.slots), []
    firsts = np.cumsum([0, *template.spaces])
    for r, row in enumerate(batch):
        r, begin = (0, int(firsts[r])) if template.pieces else (r, 0)
        for index, group in row:
            length = -(-int(features[index]) // 4)
            own = np.arange(length)
            utterance[r, begin : begin + length] = len(places)
            reach[:, r, begin : begin + length] = own, own[::-1]
            is_real[r, 4 * begin : 4 * begin + features[index]] = True
            if template.slots:
                slot = starts[group] + used[group] * template.slots[group][0] + own
                frame_of_slot[slot] = r * shape[1] + begin + own
                slot_of_frame[r * shape[1] + begin + own] = slot
                used[group] += 1
            places.append((index, r, begin))
            begin += length + template.gap
    return Layout(utterance, reach, is_real, frame_of_slot, slot_of_frame), places


# ------------------------------------------------------------------------------- the packed encoder


@jax.custom_vjp
def moved(x, index, inverse):
    """Return frames x[index], zeros where the index is -1; `inverse` moves the gradient back.

    No frame is taken twice, so the gradient is a gather too, which is faster than a scatter.
    """
    return jnp.where(index[:, None] >= 0, x.at[index].get(mode="clip"), 0)


moved.defvjp(
    lambda x, index, inverse: (moved(x, index, inverse), (index, inverse)),
    lambda indices, gradient: (moved(gradient, *reversed(indices)), None, None),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def masked_convolution(x, kernel, reach, before):
    """Convolve each channel as `depthwise_convolution` does, within the frame's utterance."""
    copies = _seen(x, reach, len(kernel), before)
    taps = kernel.astype(jnp.float32)
    return functools.reduce(jnp.add, [c * tap for c, tap in zip(copies, taps)]).astype(x.dtype)


def _seen(x, reach, taps, before):
    x = jnp.pad(x, ((0, 0), (before, taps - 1 - before), (0, 0)))
    steps = [k - before for k in range(taps)]
    seen = [(-step <= reach[0]) & (step <= reach[1]) for step in steps]
    frames = reach.shape[2]
    return [jnp.where(m[..., None], x[:, k : k + frames], 0) for k, m in enumerate(seen)]


def _masked_fwd(x, kernel, reach, before):
    return masked_convolution(x, kernel, reach, before), (x, kernel, reach)


def _masked_bwd(before, residuals, gradient):
    x, kernel, reach = residuals
    wide = gradient.astype(jnp.float32)
    taps = [jnp.sum(c * wide, axis=(0, 1)) for c in _seen(x, reach, len(kernel), before)]
    to_x = masked_convolution(gradient, kernel[::-1], reach, len(kernel) - 1 - before)
    return to_x, jnp.stack(taps).astype(kernel.dtype), None


masked_convolution.defvjp(_masked_fwd, _masked_bwd)


def subsampled_rows(subsampling, features, where: Layout):
    """Subsample rows whose utterances begin at multiples of four.

    A 1-D convolution takes no tap from before an utterance, and so needs no gap; a 2-D one needs
    one masked frame between utterances.
    """
    real = where.is_real
    x = jnp.where(real[..., None], features, 0)
    if isinstance(subsampling, Subsampling1D):
        begins = where.utterance != jnp.pad(where.utterance, ((0, 0), (1, 0)))[:, :-1]
        # The first convolution's frames: every second one may begin an utterance.
        begins_of = {2: jnp.stack([begins, begins & False], -1).reshape(len(x), -1), 4: begins}
        for stride, convolution in ((2, subsampling.first), (4, subsampling.second)):
            taps = _taps(x)
            before = jnp.where(begins_of[stride][..., None], 0, taps[..., : x.shape[-1]])
            taps = jnp.concatenate([before, taps[..., x.shape[-1] :]], axis=-1)
            x = jnp.where(real[:, ::stride, None], jax.nn.relu(convolution(taps)), 0)
        return subsampling.project(x)

    @jax.checkpoint
    def convolve(x):
        return subsampling.second(rectify(subsampling.first(x), real[:, ::2]))

    x = rectify(convolve(x[..., None]), real[:, ::4])
    return subsampling.project(x.reshape(*x.shape[:2], -1))


def attended_rows(attention, x, positions, where: Layout, template: Template):
    """Attend within each utterance: in slots, or by masking pairs of different utterances."""
    attend = _attend_rotated if positions is None else attention._attend(positions)
    query, key, value = attention._project(x)
    if template.pieces:
        return attention.out(
            _in_pieces(attend, query, key, value, where, template).reshape(x.shape)
        )
    if not template.slots:
        return attention.out(_masked_rows(attend, query, key, value, where).reshape(x.shape))
    width = x.shape[-1]
    joined = jnp.concatenate([a.reshape(-1, width) for a in (query, key, value)], axis=-1)
    joined = moved(joined, where.frame_of_slot, where.slot_of_frame)
    parts, start = [], 0
    for length, number in template.slots:
        own = slice(start, start + length * number)
        start = own.stop
        split = joined[own].reshape(number, length, 3, *query.shape[2:])
        lengths = jnp.sum(where.frame_of_slot[own].reshape(number, length) >= 0, axis=1)
        part = in_blocks(attend, split[:, :, 0], split[:, :, 1], split[:, :, 2], lengths, None)
        parts.append(part.reshape(-1, width))
    back = moved(jnp.concatenate(parts), where.slot_of_frame, where.frame_of_slot)
    return attention.out(back.reshape(x.shape))


def _in_pieces(attend, query, key, value, where: Layout, template: Template):
    parts, start = [], 0
    for length, number in template.pieces:
        own = slice(start, start + length * number)
        start = own.stop
        split = lambda a, n=number, own=own: a[:, own].reshape(n, -1, *a.shape[2:])
        utterance = where.utterance[0, own].reshape(number, length)
        mask = utterance[:, :, None] == utterance[:, None]
        parts.append(attend(split(query), split(key), split(value), 0, mask))
    return jnp.concatenate([part.reshape(1, -1, *part.shape[2:]) for part in parts], axis=1)


def _masked_rows(attend, query, key, value, where: Layout):
    """Attend with the pairs of two utterances masked; many queries in blocks, as in training."""
    rows, frames = where.utterance.shape
    blocks = -(-frames // BLOCK_FRAMES)
    size = -(-frames // blocks)

    def run(where, block_and_first):
        block, first = block_and_first
        own = jax.lax.dynamic_slice_in_dim(padded, first, size, 1)
        mask = own[:, :, None] == where.utterance[:, None]
        return where, attend(block, key, value, first, mask)

    filled = blocks * size - frames
    padded = jnp.pad(where.utterance, ((0, 0), (0, filled)), constant_values=-1)
    if blocks == 1:
        return run(where, (query, 0))[1]
    query = jnp.pad(query, ((0, 0), (0, filled), (0, 0), (0, 0)))
    query = jnp.moveaxis(query.reshape(rows, blocks, size, *query.shape[2:]), 1, 0)
    _, attended = jax.lax.scan(jax.checkpoint(run), where, (query, size * jnp.arange(blocks)))
    return jnp.moveaxis(attended, 0, 1).reshape(rows, blocks * size, *query.shape[3:])[:, :frames]


def convolved_rows(convolution, x, where: Layout):
    value, gate = jnp.split(convolution.gated(convolution.norm(x)), 2, axis=-1)
    x = value * jax.nn.sigmoid(gate)
    kernel = convolution.depthwise[...].astype(x.dtype)
    x = masked_convolution(x, kernel, where.reach, convolution.before)
    return convolution.pointwise(jax.nn.silu(convolution.depthwise_norm(x)))


def encoded_rows(encoder: Encoder, features, where: Layout, template: Template, key=None):
    """Return what the encoder returns for each utterance, at the utterance's place in its row."""
    x = subsampled_rows(encoder.subsampling, features, where)
    longest = max((edge for edge, _ in template.slots), default=template.frames)
    positions = None
    if encoder.attention == "relative":
        positions = relative_positions(longest, x.shape[2]).astype(x.dtype)
    keys = None
    if key is not None:
        key, *_ = keys = jax.random.split(key, encoder.layers + 1)
        x, keys = dropout(x, encoder.dropout, key), keys[1:]

    # The layout is carried through the loop; otherwise JAX would keep masks from outside of it.
    @_REMAT[encoder.remat]
    def run(carry, block_and_key):
        (x, where), (block, key) = carry, block_and_key
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        drop = functools.partial(dropout, probability=encoder.dropout)
        x = x + 0.5 * drop(block.first_feedforward(x), key=keys[0])
        attended = attended_rows(block.attention, x, positions, where, template)
        x = x + drop(attended, key=keys[1])
        x = x + drop(convolved_rows(block.convolution, x, where), key=keys[2])
        x = x + 0.5 * drop(block.second_feedforward(x), key=keys[3])
        return (block.norm(x), where), None

    (x, _), _ = jax.lax.scan(run, (x, where), (encoder.blocks, keys))
    return jnp.where(where.utterance[..., None] >= 0, x, 0)


def gradients_of_encoder(config: Config, template: Template | None) -> Callable[..., Any]:
    """Return the gradients of a loss of encoded frames, of a padded or of a packed batch."""
    graphdef = encoder_parts(config)[0]

    def loss(params, features, where, key):
        dtype = config.train.compute_dtype
        encoder = nnx.merge(graphdef, cast(params, dtype))
        features = features.astype(dtype)
        if template is None:
            encoded, _ = encoder(features, where, key=key)
        else:
            encoded = encoded_rows(encoder, features, where, template, key)
        return jnp.sum(jnp.square(encoded.astype(jnp.float32)))

    return jax.grad(loss)


def encoder_parts(config: Config, key: Any = None) -> tuple[Any, Any]:
    """Return the encoder's structure and its parameters; abstract ones without a key."""
    make = lambda: Encoder(config, rngs=nnx.Rngs(0 if key is None else key))
    graphdef, params = nnx.split(nnx.eval_shape(make) if key is None else make(), nnx.Param)
    return graphdef, nnx.to_pure_dict(params)


# ------------------------------------------------------------------------------------- measurements


def exactness() -> dict[str, Any]:
    """Compare packed batches with the encoder alone on each utterance, without dropout.

    The figures are the largest difference of an encoded frame, and of a parameter's gradient
    relative to that parameter's largest gradient.
    """
    quick = load_config(ROOT / "configs/quickstart.py")
    large = load_config(ROOT / "configs/librispeech_960h_l.py")
    sizes: dict[str, Any] = dict(layers=2, width=64, heads=4, subsampling_channels=16)
    small = replace(large, encoder=replace(large.encoder, **sizes))
    small = replace(small, train=replace(small.train, compute_dtype="float32"))
    features_of = np.array([97, 30, 61, 9, 150, 44])
    slots, rng, results = ((12, 3), (25, 2), (40, 2)), np.random.default_rng(0), {}
    for name, config in {"quick start": quick, "Conformer, 2-D, relative": small}.items():
        gap = 0 if config.encoder.subsampling == "conv1d" else 1
        graphdef, params = encoder_parts(config, 1)
        # Biases and scales away from 0 and 1 let every mask matter.
        params = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(p.dtype), params)
        encoder_of = functools.partial(nnx.merge, graphdef)
        inputs = [rng.normal(size=(n, 80)).astype(np.float32) for n in features_of]
        weights = [
            rng.normal(size=(-(-n // 4), config.encoder.width)).astype(np.float32)
            for n in features_of
        ]

        def run_alone(params, features, weight, encoder_of=encoder_of):
            def loss(params):
                encoded, _ = encoder_of(params)(features[None], jnp.array([len(features)]))
                return jnp.sum(encoded[0] * weight), encoded[0]

            return jax.grad(loss, has_aux=True)(params)

        single = [jax.jit(run_alone)(params, *pair) for pair in zip(inputs, weights)]
        summed = jax.tree.map(lambda *parts: sum(parts), *(gradients for gradients, _ in single))
        templates = {"mask": Template(2, 75, (), gap), "slots": Template(2, 75, slots, gap)}
        if gap == 0:
            templates["pieces"] = Template(1, 102, (), gap, ((50, 1), (52, 1)))
        for variant, template in templates.items():
            chosen = template.slots
            fits = lambda n, edge: -(-n // 4) <= edge
            group = lambda n: next((g for g, (edge, _) in enumerate(chosen) if fits(n, edge)), 0)
            rows = [[(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 0), (5, 0)]]
            rows = [[(i, group(features_of[i])) for i, _ in row] for row in rows]
            where, places = layout(rows, features_of, template)
            # Padding holds NaN, which must not spread.
            size = template.rows, template.frames
            packed_features = np.full((size[0], 4 * size[1], 80), np.nan, np.float32)
            weight = np.zeros((*size, config.encoder.width), np.float32)
            for index, r, begin in places:
                n = features_of[index]
                packed_features[r, 4 * begin : 4 * begin + n] = inputs[index]
                weight[r, begin : begin + len(weights[index])] = weights[index]

            @jax.jit
            def together(params, features, where, weight, template=template, of=encoder_of):
                def loss(params):
                    encoded = encoded_rows(of(params), features, where, template)
                    return jnp.sum(encoded * weight), encoded

                return jax.grad(loss, has_aux=True)(params)

            gradients, encoded = together(params, packed_features, where, weight)
            output = max(
                float(np.abs(encoded[r, b : b + len(weights[i])] - single[i][1]).max())
                for i, r, b in places
            )
            errors = jax.tree.map(
                lambda a, b: float(jnp.abs(a - b).max() / (jnp.abs(b).max() + 1e-30)),
                gradients,
                summed,
            )
            figures = {"output": output, "gradient": max(jax.tree.leaves(errors))}
            results[f"{name}, {variant}"] = figures
            print(f"exactness, {name}, {variant}: {figures}", flush=True)
    return results


class Shape(NamedTuple):
    """A program to measure: rows of encoded frames, padded, or packed by a template."""

    name: str
    rows: int
    frames: int
    template: Template | None = None


def abstract_inputs(config: Config, shape: Shape) -> tuple[Any, ...]:
    """Return abstract parameters, features, lengths or layout, and key."""
    rows, frames, template = shape.rows, shape.frames, shape.template
    array = jax.ShapeDtypeStruct
    features = array((rows, 4 * frames, config.features.mel_bins), jnp.float32)
    where: Any = array((rows,), jnp.int32)
    if template is not None:
        where, _ = layout([[]] * rows, np.zeros(0, int), template)
        where = jax.tree.map(lambda a: array(a.shape, a.dtype), where)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return encoder_parts(config)[1], features, where, key


def lowered(config: Config, shape: Shape, device: Any = None) -> Any:
    """Return the lowered gradients of the encoder, for a device that need not be there."""
    arguments = abstract_inputs(config, shape)
    gradients = gradients_of_encoder(config, shape.template)
    if device is None:
        return jax.jit(gradients).lower(*arguments)
    mesh = make_mesh(config.mesh, [device])
    place = jax.NamedSharding(mesh, jax.P())
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.jit(gradients, in_shardings=place).lower(*arguments)


def operations(config: Config, shape: Shape, device: Any = None) -> float:
    """Return the floating-point operations of the compiled gradients.

    XLA counts the body of a loop once. So the loops are unrolled, and the operations of a layer are
    the difference of two layers and one.
    """
    unrolled = functools.partial(jax.lax.scan, unroll=True)
    counts = []
    for layers in (1, 2):
        shallow = replace(config, encoder=replace(config.encoder, layers=layers))
        with mock.patch.object(jax.lax, "scan", unrolled):
            compiled = lowered(shallow, shape, device).compile()
        counts.append(compiled.cost_analysis()["flops"])
    return counts[0] + (config.encoder.layers - 1) * (counts[1] - counts[0])


class Buckets(NamedTuple):
    """Buckets at their best for a stream of utterances."""

    shapes: list[Shape]
    batches: np.ndarray
    """Batches of each bucket for each utterance of the stream, a fraction."""
    padding: float
    seconds: float
    """Real seconds of audio of a batch, in the mean."""


def best_buckets(lengths: np.ndarray, number: int, batch_frames: float) -> Buckets:
    """Return buckets whose batches have about `batch_frames` real frames."""
    edges = np.array(best_edges(lengths, number))
    bucket = np.searchsorted(edges, lengths)
    padding = 1 - lengths.sum() / edges[bucket].sum()
    rows = np.maximum(1, np.rint(batch_frames / (1 - padding) / edges)).astype(int)
    batches = np.bincount(bucket, minlength=number) / rows
    named = lambda r, e: Shape(f"{r} x {e * FRAME_SECONDS:.1f} s", int(r), int(e))
    shapes = [named(r, e) for r, e in zip(rows, edges)]
    return Buckets(shapes, batches, padding, FRAME_SECONDS * lengths.sum() / batches.sum())


def planned(lengths: np.ndarray, template: Template) -> tuple[Shape, float, float, Any]:
    """Return the packed program, the share of real frames, real seconds, and a batch's rows."""
    utterances = template.rows * template.frames / (lengths.mean() + template.gap)
    batches = list(packed(lengths, template, max(40, int(4 * utterances))))
    real = [sum(int(lengths[i]) for row in batch for i, _ in row) for batch in batches]
    fill = sum(real) / len(real) / (template.rows * template.frames)
    groups = f"slots {[*template.slots]}" if template.slots else "mask"
    groups = f"pieces {[*template.pieces]}" if template.pieces else groups
    name = f"{template.rows} x {template.frames * FRAME_SECONDS:.1f} s, {groups}"
    shape = Shape(name, template.rows, template.frames, template)
    return shape, fill, FRAME_SECONDS * sum(real) / len(real), batches[0]


def keep_memory() -> None:
    """Start this process again with glibc's allocator set to keep freed memory.

    By default each call of a program with more than 32 MB of temporaries maps them anew, and page
    faults then take up to 40 % of its time; programs that are a little smaller have none.
    """
    kept = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
    if not kept.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | kept)


def processor_seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of a call, and the processor time of all threads that it took."""
    began = time.process_time()
    result = jax.block_until_ready(call())
    return result, time.process_time() - began


def interleaved(
    programs: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median processor time of a call of each program, measured in turns, and the page
    faults of a call."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    faults = dict.fromkeys(programs, 0)
    for _ in range(rounds):
        for name, call in programs.items():
            call()  # warms the caches, and does not count
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            many = lambda call=call: [call() for _ in range(5)]
            times[name].append(processor_seconds(many)[1] / 5)
            faults[name] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return (
        {name: float(np.median(taken[1:])) for name, taken in times.items()},
        {name: count / rounds / 5 for name, count in faults.items()},
    )


def quick_start(rounds: int) -> dict[str, Any]:
    """Compare processor time of the quick start's steps and of their compilation, for each second
    of audio."""
    config, rng = load_config(ROOT / "configs/quickstart.py"), np.random.default_rng(0)
    utterances, _ = read_transcribed(ROOT / config.data.train, "data.train")
    order = np.concatenate([rng.permutation(len(utterances)) for _ in range(6)])
    seconds = np.array([u.duration_seconds for u in utterances])[order]
    labels = np.array([len(u.text) for u in utterances])[order]
    features = drawn_frames(seconds, config, math.inf, rng)
    lengths, longest = -(-features // 4), -(-int(features.max()) // 4)
    real = 18.5 / FRAME_SECONDS  # the seconds of audio of a batch of the config
    buckets = best_buckets(lengths, len(config.data.bucket_seconds), real)
    templates = [Template(round(real / 0.98 / longest), longest, gap=0)]
    templates.append(Template(2, round(real / 0.98 / 2), gap=0))
    slots = slots_for(lengths, real / lengths.mean(), 3, 0.0)
    templates.append(Template(1, round(real / 0.99), slots, gap=0))
    for number in (2, 3):
        length = round((real / 0.97 - longest) / number)
        pieces = (longest, 1), (length, number)
        templates.append(Template(1, longest + length * number, gap=0, pieces=pieces))
    plans = [planned(lengths, template) for template in templates]
    calls, compiling, whole = {}, {}, {}
    edges = [shape.frames for shape in buckets.shapes]
    bucket = np.searchsorted(edges, lengths)
    graphdef, params = encoder_parts(config, 1)
    for shape in [*buckets.shapes, *(plan[0] for plan in plans)]:
        program = functools.partial(lowered, config, shape)
        compiled, compiling[shape.name] = processor_seconds(lambda p=program: p().compile())
        inputs = rng.normal(size=(shape.rows, 4 * shape.frames, 80)).astype(np.float32)
        if shape.template is None:
            where = features[bucket == edges.index(shape.frames)][: shape.rows].astype(np.int32)
        else:
            batch = next(plan[3] for plan in plans if plan[0] == shape)
            where, _ = layout(batch, features, shape.template)
        arguments = jax.device_put((params, inputs, where, jax.random.key(0)))
        calls[shape.name] = functools.partial(compiled, *arguments)
    for k, shape in enumerate(buckets.shapes):
        name = f"whole step, {shape.name}"
        own = np.flatnonzero(bucket == k)
        bounds = int(labels[own].max())
        data = replace(
            config.data,
            bucket_seconds=(shape.frames * FRAME_SECONDS,),
            bucket_labels=(bounds,),
            bucket_utterances=(shape.rows,),
        )
        call, compiling[name] = whole_step(
            replace(config, data=data), features[own[: shape.rows]], labels[own[: shape.rows]]
        )
        calls[name], whole[shape.name] = call, name
    optimizer_call = optimizer_alone(config)
    calls["optimizer"] = optimizer_call
    taken, faults = interleaved(calls, rounds)

    share = buckets.batches / buckets.batches.sum()
    mean = lambda names, of: float(np.dot(share, [of[name] for name in names]))
    names = [shape.name for shape in buckets.shapes]
    encoder, step = mean(names, taken), mean(whole.values(), taken)
    rest = step - encoder
    compile_encoder = sum(compiling[name] for name in names)
    compile_step = sum(compiling[name] for name in whole.values())
    compile_rest = (compile_step - compile_encoder) / len(names)
    figures: dict[str, Any] = {
        "programs": taken,
        "page_faults": faults,
        "compiling": compiling,
        "padding": buckets.padding,
        "bucket_audio_seconds": buckets.seconds,
        "encoder_share": encoder / step,
        "optimizer_share": taken["optimizer"] / step,
        "packed": {},
    }
    for shape, fill, audio, _ in plans:
        own = taken[shape.name] / audio
        # The rest of a step belongs to real cells and does not change, or shrinks with the padding.
        less = (rest - taken["optimizer"]) * (1 - buckets.padding) / fill + taken["optimizer"]
        figures["packed"][shape.name] = {
            "fill": fill,
            "audio_seconds": audio,
            "encoder": own / (encoder / buckets.seconds),
            "step": (own + rest / buckets.seconds) / (step / buckets.seconds),
            "step_rest_scaled": (own + less / buckets.seconds) / (step / buckets.seconds),
            "compile_encoder": compiling[shape.name] / compile_encoder,
            "compile_step": (compiling[shape.name] + compile_rest) / compile_step,
        }
    print(json.dumps(figures, indent=1), flush=True)
    return figures


def whole_step(config: Config, features: np.ndarray, labels: np.ndarray) -> tuple[Any, float]:
    """Return a call of the config's training step on noise, and the seconds to compile it."""
    mesh, rng = make_mesh(config.mesh, jax.devices()), np.random.default_rng(0)
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    graphdef, _ = split_model(config, 29)
    abstract = abstract_state(config, 29, optimizer, mesh)
    (shape,) = batch_shapes(config)
    step = jitted_step(config, graphdef, optimizer, abstract, mesh)
    compiled, seconds = processor_seconds(lambda: step.lower(abstract, shape).compile())
    rows, samples = shape.samples.shape
    batch = shape._replace(
        samples=rng.normal(scale=0.1, size=(rows, samples)).astype(np.float32),
        sample_lengths=np.minimum(160 * features, samples).astype(np.int32),
        labels=rng.integers(2, 29, shape.labels.shape).astype(np.int32),
        label_lengths=labels.astype(np.int32),
        tempo=np.ones(rows, np.float32),
        utterances=np.arange(rows, dtype=np.int32),
        second_utterance=np.full(rows, -1, np.int32),
    )
    state = [initial_state(config, 29, optimizer, mesh)]

    def call() -> Any:
        state[0], metrics = compiled(state[0], batch)
        return metrics

    return call, seconds


def optimizer_alone(config: Config) -> Callable[[], Any]:
    """Return a call that computes the optimizer's update for the whole model."""
    mesh = make_mesh(config.mesh, jax.devices())
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    state = initial_state(config, 29, optimizer, mesh)
    update = jax.jit(lambda gradients, s: optimizer.update(gradients, s.optimizer, s.params))
    return lambda: update(state.params, state)


def conformer_l(
    folder: Path | None, target: str, known: dict[str, Any], keep: Callable[[], Any]
) -> dict[str, Any]:
    """Compare operations and temporaries of Conformer-L, for each second of audio.

    Programs of `known` are not compiled again; `keep` is called after each new one.
    """
    config, rng = load_config(ROOT / "configs/librispeech_960h_l.py"), np.random.default_rng(0)
    if folder is None:
        seconds = librispeech_like(20_000, rng)
    else:
        recordings, _ = read_transcribed(folder, "--librispeech")
        own = np.array([u.duration_seconds for u in recordings])
        seconds = np.concatenate([rng.permutation(own) for _ in range(20_000 // len(own))])
    lengths = -(-drawn_frames(seconds, config, math.inf, rng) // 4)
    batch_seconds = 3000.0 / 4  # a device's part of the config's batch
    buckets = best_buckets(lengths, len(config.data.bucket_seconds), batch_seconds * 0.9 / 0.04)
    real = buckets.seconds / FRAME_SECONDS
    longest = int(lengths.max())
    templates = []
    for frames, groups, slack in [
        (longest, 0, 0.0),
        (2 * longest, 6, 0.0),
        (2 * longest, 10, 0.0),
    ]:
        rows = max(1, round(real / 0.985 / frames))
        utterances = rows * frames * 0.99 / (lengths.mean() + 1)
        slots = slots_for(lengths, utterances, groups, slack) if groups else ()
        templates.append(Template(rows, frames, slots))
    plans = [planned(lengths, template) for template in templates]
    device = target_devices(target)[0][0]
    in_float32 = replace(config, train=replace(config.train, compute_dtype="float32"))
    counted, temporaries, compiling = (known.setdefault(name, {}) for name in KEPT)
    for shape in [*buckets.shapes, *(plan[0] for plan in plans)]:
        if shape.name in compiling:
            continue
        # A CPU's compiler counts its operations, a GPU's does not.
        counted[shape.name] = operations(in_float32, shape)
        program = functools.partial(lowered, config, shape, device)
        compiled, compiling[shape.name] = processor_seconds(lambda p=program: p().compile())
        temporaries[shape.name] = compiled.memory_analysis().temp_size_in_bytes
        note = f"{counted[shape.name] / 1e12:.3f} TFLOP, {temporaries[shape.name] / 1e9:.3f} GB"
        print(f"{shape.name}: {note}, {compiling[shape.name]:.0f} s to compile", flush=True)
        del compiled
        gc.collect()
        keep()
    names = [shape.name for shape in buckets.shapes]
    per_second = float(np.dot(buckets.batches, [counted[name] for name in names]))
    per_second /= FRAME_SECONDS * lengths.sum()
    most = max(temporaries[name] for name in names)
    figures: dict[str, Any] = {
        "mean_seconds": float(lengths.mean()) * FRAME_SECONDS,
        "operations": counted,
        "temporaries": temporaries,
        "compiling": compiling,
        "padding": buckets.padding,
        "bucket_audio_seconds": buckets.seconds,
        "bucket_flops_per_second": per_second,
        "packed": {},
    }
    for shape, fill, audio, _ in plans:
        figures["packed"][shape.name] = {
            "fill": fill,
            "audio_seconds": audio,
            "flops_per_second": counted[shape.name] / audio,
            "operations": counted[shape.name] / audio / per_second,
            "temporaries": temporaries[shape.name] / audio / (most / buckets.seconds),
            "compile": compiling[shape.name] / sum(compiling[name] for name in names),
        }
    print(json.dumps(figures, indent=1), flush=True)
    return figures


def table(figures: dict[str, Any]) -> None:
    """Print the ratios of the packed shape with the best first row, and what they must reach."""
    rows = [
        ("quick start", "step", "processor time of training steps", 0.77),
        ("quick start", "step_rest_scaled", "the same, with the rest of a step packed too", 0.77),
        ("quick start", "encoder", "the same, the encoder alone", 0.77),
        ("quick start", "compile_step", "processor time to compile the steps", 0.45),
        ("Conformer-L", "operations", "operations for each second of audio", 0.95),
        ("Conformer-L", "temporaries", "temporaries for each second of audio", 1.05),
    ]
    print("| | packed / buckets | must reach | packed shape |\n|---|---:|---:|---|")
    for part, field, words, aim in rows:
        if packed_figures := figures.get(part, {}).get("packed"):
            first = {"quick start": "step", "Conformer-L": "operations"}[part]
            name = min(packed_figures, key=lambda n: packed_figures[n][first])
            value = packed_figures[name][field]
            print(f"| {part}: {words} | {value:.3f} | {aim} | {name} |")


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--librispeech", type=Path)
    parser.add_argument("--target", default="h200")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--return-memory", action="store_true", help="leave glibc's allocator at its defaults"
    )
    parts = ["exact", "quickstart", "librispeech"]
    parser.add_argument("--parts", nargs="*", default=parts, choices=parts)
    options = parser.parse_args()
    if not options.return_memory:
        keep_memory()
    figures: dict[str, Any] = {}
    if options.json and options.json.exists():
        figures = json.loads(options.json.read_text())

    def keep() -> None:
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")

    if "exact" in options.parts:
        figures["exactness"] = exactness()
        keep()
    if "quickstart" in options.parts:
        figures["quick start"] = quick_start(options.rounds)
        keep()
    if "librispeech" in options.parts:
        known = figures.setdefault("Conformer-L", {})
        known.update(conformer_l(options.librispeech, options.target, known, keep))
        keep()
    table(figures)


if __name__ == "__main__":
    main()
