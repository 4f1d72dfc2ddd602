"""A batch a few utterances at a time, for batches whose planes [B, T, U + 1] alone are too much.

The forward pass computes each group's gradients at once, as if the losses were only summed up, so
that no plane outlives its group. The backward pass multiplies them by the cotangents that the
losses really have. Only the gradient of shared weights mixes utterances: where their cotangents
differ, which is seldom, it is computed again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PyTree

from asr_jax.losses._first_order import first_order_only

MANY_CELLS, GROUP_CELLS = 2**24, 2**21  # a float32 plane of them: 67 and 8 MB
# JAX 0.10 on a CPU keeps a stack of bfloat16 as float32; integers it keeps as they are.
STACKS_AS_FLOAT32 = jax.__version_info__ < (0, 11)


def choose_size(batch: int, frames: int, cells: int, at_most: int | None) -> int:
    """Utterances a group: a divisor of the batch. None: all, unless there are very many cells."""
    if at_most is None:
        few = batch * frames * cells <= MANY_CELLS
        at_most = batch if few else GROUP_CELLS // (frames * cells)
    return max(
        size for size in range(1, batch + 1) if batch % size == 0 and size <= max(1, at_most)
    )


def in_groups(
    loss: Callable[..., Float32[Array, " B"]],
    floats: PyTree[Array],
    weights: PyTree[Array],
    integers: PyTree[Array],
    *,
    shards: int,
    size: int,
) -> Float32[Array, " B"]:
    """loss(floats, weights, integers), `size` utterances of each of the batch's shards at a time.

    floats and integers have a leading batch axis; weights are what all utterances share.
    """
    batch = len(jax.tree.leaves(integers)[0])
    dtypes = jax.tree.map(lambda x: x.dtype, floats)
    values = lambda bits: jax.tree.map(_view, bits, dtypes)

    def apart(x):
        x = x.reshape(shards, batch // shards // size, size, *x.shape[1:])
        x = jnp.moveaxis(x, 1, 0)
        return x.reshape(len(x), shards * size, *x.shape[3:])

    def together(x):
        x = x.reshape(len(x), shards, size, *x.shape[2:])
        return jnp.moveaxis(x, 0, 1).reshape(batch, *x.shape[3:])

    @jax.custom_vjp
    def losses(floats, weights, integers):
        one = lambda group: loss(values(group[0]), weights, group[1])
        return together(jax.lax.map(one, jax.tree.map(apart, (_bits(floats), integers))))

    def with_gradients(floats, weights, integers, cotangents):
        def one(sums, group):
            floats, integers, cotangents = group
            losses, pull = jax.vjp(lambda *x: loss(*x, integers), values(floats), weights)
            d_floats, d_weights = pull(cotangents)
            return jax.tree.map(jnp.add, sums, d_weights), (losses, _bits(d_floats))

        zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), weights)
        groups = jax.tree.map(apart, (_bits(floats), integers, cotangents))
        d_weights, of_each = jax.lax.scan(one, zeros, groups)
        losses, d_floats = jax.tree.map(together, of_each)
        return d_weights, losses, values(d_floats)

    def fwd(floats, weights, integers):
        ones = jnp.ones_like(jax.tree.leaves(floats)[0], jnp.float32, shape=(batch,))
        d_weights, losses, d_floats = with_gradients(floats, weights, integers, ones)
        return losses, (floats, weights, integers, losses, d_floats, d_weights)

    def bwd(residuals, cotangents):
        floats, weights, integers, losses, d_floats, d_weights = residuals
        finite = jnp.isfinite(losses)  # the others have no gradient
        low = jnp.where(finite, cotangents, jnp.inf).min()
        high = jnp.where(finite, cotangents, -jnp.inf).max()
        scaled = lambda: jax.tree.map(lambda d: jnp.where(finite.any(), high, 0.0) * d, d_weights)
        again = lambda: with_gradients(floats, weights, integers, cotangents)[0]
        d_weights = jax.lax.cond(low < high, again, scaled)
        # Without an alignment there is no gradient, even where the cotangent is infinite.
        taken = jnp.where(losses == jnp.inf, 0, cotangents)
        spread = lambda d: taken.reshape(-1, *[1] * (d.ndim - 1))
        of_each = lambda d: (spread(d) * d).astype(d.dtype)
        cast = lambda d, x: d.astype(x.dtype)
        gradients = jax.tree.map(of_each, d_floats), jax.tree.map(cast, d_weights, weights)
        # With floats, as what was stacked as bits seems to depend on nothing.
        return *first_order_only((*gradients, floats))[:2], None

    losses.defvjp(fwd, bwd)
    return losses(floats, weights, integers)


def _bits(floats):
    """As they are best stacked: see STACKS_AS_FLOAT32."""
    dtype = lambda x: f"uint{8 * x.dtype.itemsize}" if STACKS_AS_FLOAT32 else x.dtype
    return jax.tree.map(lambda x: _view(x, dtype(x)), floats)


def _view(x, dtype):
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)
