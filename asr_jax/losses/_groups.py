"""A few utterances at a time, for batches whose planes [B, T, U + 1] alone take too much memory.

The forward pass computes each group's gradients immediately, as if the losses were summed, so that
no plane outlives its group. The backward pass multiplies them by the actual cotangents of the
losses. Only the gradient of shared weights mixes utterances: if their cotangents differ, which is
rare, it is computed again.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree, Shaped

from asr_jax.losses._first_order import first_order_only

MANY_CELLS, GROUP_CELLS = 2**24, 2**21  # their float32 planes: 67 and 8 MB
# On a CPU, JAX 0.10 stores stacked bfloat16 as float32, but integers as they are.
STACKS_AS_FLOAT32 = jax.__version_info__ < (0, 11)


class Grouping(NamedTuple):
    """How a batch is split: `size` utterances from each of its shards form a group.

    loss(floats, weights, integers): losses of a group. floats and integers have a leading batch
        axis; weights are shared by all utterances.
    """

    loss: Callable[..., Float32[Array, " B"]]
    shards: int
    size: int


def choose_size(batch: int, frames: int, cells: int, at_most: int | None) -> int:
    """Return the utterances per group, a divisor of the batch; at_most None: by the cells."""
    if at_most is None:
        few = batch * frames * cells <= MANY_CELLS
        at_most = batch if few else GROUP_CELLS // (frames * cells)
    return max(
        size for size in range(1, batch + 1) if batch % size == 0 and size <= max(1, at_most)
    )


@partial(jax.custom_vjp, nondiff_argnames=("grouping",))
def loss_in_groups(
    floats: PyTree[Array], weights: PyTree[Array], integers: PyTree[Array], grouping: Grouping
) -> Float32[Array, " B"]:
    """Return grouping.loss(floats, weights, integers), computed one group at a time."""
    dtypes = _dtypes(floats)

    def loss_of_group(group):
        bits, integers = group
        return grouping.loss(_values(bits, dtypes), weights, integers)

    return merge_groups(
        jax.lax.map(loss_of_group, split_groups((_bits(floats), integers), grouping)), grouping
    )


def split_groups(
    arrays: PyTree[Shaped[Array, "B ..."]], grouping: Grouping
) -> PyTree[Shaped[Array, "G N ..."]]:
    """Return the G groups of a batch, N utterances each, equally many from every shard."""
    _, shards, size = grouping

    def split(x):
        x = x.reshape(shards, len(x) // shards // size, size, *x.shape[1:])
        x = jnp.moveaxis(x, 1, 0)
        return x.reshape(len(x), shards * size, *x.shape[3:])

    return jax.tree.map(split, arrays)


def merge_groups(
    arrays: PyTree[Shaped[Array, "G N ..."]], grouping: Grouping
) -> PyTree[Shaped[Array, "B ..."]]:
    """Return the batch of these groups: the inverse of `split_groups`."""
    _, shards, size = grouping

    def merge(x):
        x = x.reshape(len(x), shards, size, *x.shape[2:])
        return jnp.moveaxis(x, 0, 1).reshape(len(x) * shards * size, *x.shape[3:])

    return jax.tree.map(merge, arrays)


def _fwd(floats, weights, integers, grouping):
    batch = len(jax.tree.leaves(integers)[0])
    ones = jnp.ones_like(jax.tree.leaves(floats)[0], jnp.float32, shape=(batch,))
    losses, *gradients = _with_gradients(floats, weights, integers, ones, grouping)
    return losses, (floats, weights, integers, losses, *gradients)


def _bwd(grouping, residuals, cotangents):
    floats, weights, integers, losses, d_floats, d_weights = residuals
    finite = jnp.isfinite(losses)  # other losses have no gradient
    low = jnp.where(finite, cotangents, jnp.inf).min()
    high = jnp.where(finite, cotangents, -jnp.inf).max()

    def scaled():
        return jax.tree.map(lambda d: jnp.where(finite.any(), high, 0.0) * d, d_weights)

    def computed_again():
        return _with_gradients(floats, weights, integers, cotangents, grouping)[2]

    d_weights = jax.lax.cond(low < high, computed_again, scaled)
    d_weights = jax.tree.map(lambda d, x: d.astype(x.dtype), d_weights, weights)
    # Without an alignment there is no gradient, even where the cotangent is infinite.
    taken = jnp.where(losses == jnp.inf, 0, cotangents)
    d_floats = jax.tree.map(
        lambda d: (taken.reshape(-1, *[1] * (d.ndim - 1)) * d).astype(d.dtype), d_floats
    )
    # Pass floats along: gradients stacked as bits look independent of the inputs.
    return *first_order_only((d_floats, d_weights, floats))[:2], None


loss_in_groups.defvjp(_fwd, _bwd)


def _with_gradients(floats, weights, integers, cotangents, grouping):
    """Return losses, the gradients of floats, and, in float32, those of weights."""
    dtypes = _dtypes(floats)

    def add_group(d_weights, group):
        bits, integers, cotangents = group
        loss = lambda floats, weights: grouping.loss(floats, weights, integers)
        losses, pull = jax.vjp(loss, _values(bits, dtypes), weights)
        d_floats, more = pull(cotangents)
        return jax.tree.map(jnp.add, d_weights, more), (losses, _bits(d_floats))

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), weights)
    groups = split_groups((_bits(floats), integers, cotangents), grouping)
    d_weights, of_groups = jax.lax.scan(add_group, zeros, groups)
    losses, d_floats = merge_groups(of_groups, grouping)
    return losses, _values(d_floats, dtypes), d_weights


def _dtypes(floats):
    return jax.tree.map(lambda x: x.dtype, floats)


def _bits(floats):
    """Return floats as the type in which they are stacked: see STACKS_AS_FLOAT32."""
    if not STACKS_AS_FLOAT32:
        return floats
    return jax.tree.map(lambda x: _view(x, f"uint{8 * x.dtype.itemsize}"), floats)


def _values(bits, dtypes):
    return jax.tree.map(_view, bits, dtypes)


def _view(x, dtype):
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)
