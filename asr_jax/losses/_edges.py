"""From a joint's arguments to log-probabilities of edges: what every loss of it begins with."""

from collections.abc import Callable
from math import gcd, prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from asr_jax.losses._cells import Columns, Planes, edges, labels_of_cells, pick_planes
from asr_jax.losses._checks import Implementation, signed
from asr_jax.losses._groups import choose_size, in_groups
from asr_jax.losses._joint import ACTIVATIONS, Activation, Options, joint_planes
from asr_jax.losses._tiles import choose_kernel_tile, choose_tile


class Edges(NamedTuple):
    """log-probabilities of the edges from each cell, and logits of columns behind the symbols."""

    blank: Float32[Array, "B T U1"]
    label: Float32[Array, "B T U"]
    rest: Float32[Array, "B T U1 X"]


def joint_edges(
    encoded,
    predicted,
    kernel,
    bias,
    labels,
    encoded_lengths,
    label_lengths,
    *,
    columns: Columns,
    activation: Activation,
    chunk_frames: int | None,
    implementation: Implementation,
    negligible_gradient: float = 0.0,
) -> Edges:
    """Edges of activation(encoded + predicted) @ kernel + bias; padding may hold anything."""
    batch, frames, _ = encoded.shape
    cells = predicted.shape[1]
    bias = jnp.zeros_like(kernel[0]) if bias is None else bias
    u = jnp.arange(cells)
    real_frames = jnp.arange(frames) < encoded_lengths[:, None]
    real_cells = u <= label_lengths[:, None]
    encoded = jnp.where(real_frames[..., None], encoded, 0)
    predicted = jnp.where(real_cells[..., None], predicted, 0)
    labels = labels_of_cells(labels, label_lengths, columns)
    if implementation == "reference" or 0 in encoded.shape:
        hidden = encoded[:, :, None].astype(jnp.float32) + predicted[:, None].astype(jnp.float32)
        hidden = ACTIVATIONS[activation](hidden)
        logits = hidden @ kernel.astype(jnp.float32) + bias.astype(jnp.float32)
        real = real_frames[:, :, None] & real_cells[:, None]
        planes = pick_planes(logits, labels, real, columns)
    else:
        possible = (encoded_lengths > 0) & (encoded_lengths <= frames)
        possible &= (label_lengths >= 0) & (label_lengths < cells)
        lengths = (jnp.where(possible, x, 0) for x in (encoded_lengths, label_lengths + 1))
        if implementation == "mosaic_gpu":
            shards = 1
            tile = choose_kernel_tile(batch, frames, cells, kernel.shape[1], chunk_frames)
        else:
            shards = gcd(batch, devices())
            shape = batch, frames, cells, *kernel.shape
            size = encoded.dtype.itemsize
            tile = choose_tile(*shape, itemsize=size, shards=shards, chunk_frames=chunk_frames)
        name = implementation or "xla"
        options = Options(columns, activation, tile, shards, name, negligible_gradient)
        planes = joint_planes(encoded, predicted, kernel, bias, labels, *lengths, options)
    planes: Planes = planes  # pyright: ignore[reportAssignmentType]
    return Edges(*edges(planes, columns), planes.rest)


def joint_loss(
    log_likelihood: Callable[..., Float32[Array, " B"]],
    encoded,
    predicted,
    kernel,
    bias,
    labels,
    encoded_lengths,
    label_lengths,
    *,
    utterances_per_group: int | None,
    **options,
) -> Float32[Array, " B"]:
    """-log_likelihood(edges, encoded_lengths, label_lengths), for large batches in groups."""

    def loss(floats, weights, integers):
        edges = joint_edges(*floats, *weights, *integers, **options)
        return -log_likelihood(edges, *integers[1:])

    floats = vary_alike(encoded, predicted, kernel, bias)
    floats, weights = floats[:2], floats[2:]
    integers = vary_alike(*signed(labels, encoded_lengths, label_lengths))
    batch, frames, _ = encoded.shape
    if 0 in encoded.shape or options["implementation"] == "reference":
        return loss(floats, weights, integers)
    shards = 1 if options["implementation"] == "mosaic_gpu" else gcd(batch, devices())
    at_most = None if utterances_per_group is None else utterances_per_group // shards
    size = choose_size(batch // shards, frames, predicted.shape[1], at_most)
    if size * shards == batch:
        return loss(floats, weights, integers)
    return in_groups(loss, floats, weights, integers, shards=shards, size=size)


def lattice_walker(implementation: Implementation) -> Callable | None:
    """What walks over the lattice, if not `walk`."""
    if implementation != "mosaic_gpu":
        return None
    from asr_jax.losses._mosaic_gpu import lattice_forward  # imports Pallas

    return lattice_forward


def devices() -> int:
    """Over how many devices a batch may be spread, where nobody tells how it really is.

    Utterances are packed within each of so many parts of the batch. With at least as many parts as
    the batch has shards no device has to know another's utterances, and one part a device packs
    best.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count()
    return prod(mesh.shape[name] for name in mesh.axis_names if name not in mesh.manual_axes)


def vary_alike(*arrays):
    """Under shard_map: let all arrays vary over the axes that one of them varies over.

    Loops carry sums of all of them; and the sum over devices that the kernel's gradient needs is
    then that of this cast.
    """
    varying = lambda x: jax.typeof(x).manual_axis_type.varying
    axes = frozenset().union(*(varying(x) for x in arrays if x is not None))

    def cast(x):
        missing = () if x is None else tuple(axes - varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return tuple(map(cast, arrays))
