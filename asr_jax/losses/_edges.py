"""From the joint network's arguments to log-probabilities of edges, and to a loss of them."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32, Key

from asr_jax.losses._arguments import Computation, Implementation, JointArguments
from asr_jax.losses._cells import Planes, VocabularyLayout, edges, labels_of_cells, select_planes
from asr_jax.losses._checks import as_int32
from asr_jax.losses._dropout import cell_hashes, dropout_scales
from asr_jax.losses._groups import Grouping, choose_size, loss_in_groups
from asr_jax.losses._joint import ACTIVATIONS, TilePlan, joint_planes
from asr_jax.losses._sharding import batch_shards, vary_alike
from asr_jax.losses._tiles import choose_kernel_tile, choose_tile


class Edges(NamedTuple):
    """Log-probabilities of each cell's edges, and the logits in the columns after the symbols."""

    blank: Float32[Array, "B T U1"]
    label: Float32[Array, "B T U"]
    rest: Float32[Array, "B T U1 X"]


def joint_edges(joint: JointArguments, computation: Computation, layout: VocabularyLayout) -> Edges:
    """Return edges of activation(encoded + predicted) @ kernel + bias; padding may be anything."""
    frames, cells = joint.encoded.shape[1], joint.predicted.shape[1]
    real_frames = jnp.arange(frames) < joint.encoded_lengths[:, None]
    real_cells = jnp.arange(cells) <= joint.label_lengths[:, None]
    joint = joint._replace(
        encoded=jnp.where(real_frames[..., None], joint.encoded, 0),
        predicted=jnp.where(real_cells[..., None], joint.predicted, 0),
        bias=jnp.zeros_like(joint.kernel[0]) if joint.bias is None else joint.bias,
        labels=labels_of_cells(joint.labels, joint.label_lengths, layout),
    )
    if _in_tiles(joint, computation):
        planes = _planes_in_tiles(joint, computation, layout)
    else:
        real = real_frames[:, :, None] & real_cells[:, None]
        planes = _planes_in_4d(joint, computation, layout, real)
    return Edges(*edges(planes, layout), planes.rest)


def _planes_in_4d(joint, computation, layout, real) -> Planes:
    encoded, predicted, kernel, bias, labels = joint[:5]
    hidden = encoded[:, :, None].astype(jnp.float32) + predicted[:, None].astype(jnp.float32)
    hidden = ACTIVATIONS[computation.activation](hidden)
    hidden *= dropout_scales(joint.hashes, hidden.shape[-1], computation.dropout)
    logits = hidden @ kernel.astype(jnp.float32) + bias.astype(jnp.float32)
    return select_planes(logits, labels, real, layout)


def _planes_in_tiles(joint, computation, layout) -> Planes:
    encoded, predicted, kernel, bias, labels, encoded_lengths, label_lengths, hashes = joint
    (batch, frames, width), cells, vocabulary = encoded.shape, predicted.shape[1], len(bias)
    possible = (encoded_lengths > 0) & (encoded_lengths <= frames)
    possible &= (label_lengths >= 0) & (label_lengths < cells)
    lengths = jnp.where(possible, encoded_lengths, 0), jnp.where(possible, label_lengths + 1, 0)
    shards, chunk_frames = batch_shards(joint, computation), computation.chunk_frames
    implementation = "mosaic_gpu" if computation.implementation == "mosaic_gpu" else "xla"
    if implementation == "mosaic_gpu":
        tile = choose_kernel_tile(batch, frames, cells, vocabulary, chunk_frames)
    else:
        tile = choose_tile(
            *(batch, frames, cells, width, vocabulary),
            itemsize=encoded.dtype.itemsize,
            shards=shards,
            chunk_frames=chunk_frames,
        )
    plan = TilePlan(
        layout,
        computation.activation,
        tile,
        shards,
        implementation,
        computation.negligible_gradient,
        computation.dropout,
    )
    return joint_planes(encoded, predicted, kernel, bias, labels, lengths, hashes, plan)


def joint_loss(
    log_likelihood: Callable[..., Float32[Array, " B"]],
    joint: JointArguments,
    computation: Computation,
    layout: VocabularyLayout,
    key: Key[Array, ""] | None,
) -> Float32[Array, " B"]:
    """Return -log_likelihood(edges, encoded_lengths, label_lengths), large batches in groups."""
    joint = as_one_kind(joint)
    (batch, frames, _), cells = joint.encoded.shape, joint.predicted.shape[1]
    hashes = cell_hashes(key, batch, frames, cells, dropout=computation.dropout)
    joint = vary_alike(joint._replace(hashes=hashes))
    floats, weights, integers = joint[:2], joint[2:4], joint[4:]

    def loss(floats, weights, integers):
        part = JointArguments(*floats, *weights, *integers)
        edges = joint_edges(part, computation, layout)
        return -log_likelihood(edges, part.encoded_lengths, part.label_lengths)

    if not _in_tiles(joint, computation):
        return loss(floats, weights, integers)
    shards, at_most = batch_shards(joint, computation), computation.utterances_per_group
    at_most = None if at_most is None else at_most // shards
    size = choose_size(batch // shards, frames, cells, at_most)
    if size * shards == batch:
        return loss(floats, weights, integers)
    return loss_in_groups(floats, weights, integers, Grouping(loss, shards, size))


def as_one_kind(joint: JointArguments) -> JointArguments:
    """Return int32 labels and lengths, one frame or more, all varying over the same devices."""
    encoded, encoded_lengths = at_least_one_frame(joint.encoded, joint.encoded_lengths)
    labels, *lengths = as_int32(joint.labels, encoded_lengths, joint.label_lengths)
    joint = joint._replace(encoded=encoded, labels=labels)
    return vary_alike(joint._replace(encoded_lengths=lengths[0], label_lengths=lengths[1]))


def at_least_one_frame(frames, lengths):
    """Return the arguments, with a frame that belongs to no utterance if the axis is empty."""
    if frames.shape[1]:
        return frames, lengths
    padding = [(0, 0), (0, 1)] + [(0, 0)] * (frames.ndim - 2)
    return jnp.pad(frames, padding), jnp.zeros_like(lengths)


def _in_tiles(joint, computation):
    return computation.implementation != "reference" and 0 not in joint.encoded.shape


def lattice_walker(implementation: Implementation) -> Callable | None:
    """Return the replacement for `_lattice.walk`, if any."""
    if implementation != "mosaic_gpu":
        return None
    from asr_jax.losses._mosaic_gpu import lattice_forward  # imports Pallas

    return lattice_forward
