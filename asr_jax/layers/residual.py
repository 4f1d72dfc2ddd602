"""Linear layers that share a matrix and add residual matrices to it (arXiv 2310.02489)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from asr_jax.layers.linear import product


class Shared(nnx.Param):
    """A parameter that all layers of a group share (layers/stack.py)."""


@jax.custom_vjp
def scaled(x: Float[Array, "*B D"], scale: Float[Array, " D"]) -> Float[Array, "*B D"]:
    """Return x * scale; the gradient of `scale` is summed in float32, as for `product`."""
    return x * scale


def _scaled_fwd(x, scale):
    return x * scale, (x, scale)


def _scaled_bwd(residuals, gradient):
    x, scale = residuals
    summed = jnp.einsum("...d,...d->d", x, gradient, preferred_element_type=jnp.float32)
    return gradient * scale, summed.astype(scale.dtype)


scaled.defvjp(_scaled_fwd, _scaled_bwd)


def low_rank_sum(
    x: Float[Array, "*B D"],
    kernel: Float[Array, "D E"],
    down: Float[Array, "D R"],
    up: Float[Array, "R E"],
) -> Float[Array, "*B E"]:
    """Return x (kernel + down up) without forming the sum, as x kernel + (x down) up."""
    return product(x, kernel) + product(product(x, down), up)


class ResidualLinear(nnx.Module):
    """x (W + A B + D) + b (equation 3 of the paper).

    The full-rank matrix W is shared; the layer owns A B of rank R, a diagonal D, and b. D has
    min(inputs, outputs) entries, so that non-square matrices have one too. The sum is never formed:
    x W + (x A) B + x D are three products. B and D start as zeros, so that the layers of a group
    start with the same matrix.
    """

    def __init__(
        self, inputs: int, outputs: int, *, rank: int, use_bias: bool = True, rngs: nnx.Rngs
    ):
        initializer = nnx.initializers.lecun_normal()
        self.kernel = Shared(initializer(rngs.params(), (inputs, outputs)))
        self.down = nnx.Param(initializer(rngs.params(), (inputs, rank))) if rank else None
        self.up = nnx.Param(jnp.zeros((rank, outputs))) if rank else None
        self.diagonal = nnx.Param(jnp.zeros(min(inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs)) if use_bias else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        diagonal = self.diagonal[...]
        if self.down is not None and self.up is not None:
            y = low_rank_sum(x, self.kernel[...], self.down[...], self.up[...])
        else:
            y = product(x, self.kernel[...])
        own = scaled(x[..., : len(diagonal)], diagonal)
        y = y + jnp.pad(own, [(0, 0)] * (x.ndim - 1) + [(0, y.shape[-1] - len(diagonal))])
        return y if self.bias is None else y + self.bias[...]


def folded(params: dict[str, PyTree]) -> dict[str, PyTree]:
    """Replace the parameters of every ResidualLinear by Linear's, with the kernel W + A B + D.

    Takes the parameters of a model of stacked layers, and returns all others unchanged.
    """
    if "diagonal" not in params:
        return {
            name: folded(inner) if isinstance(inner, dict) else inner
            for name, inner in params.items()
        }
    shared, diagonal = params["kernel"], params["diagonal"]
    kernel = jnp.repeat(shared, len(diagonal) // len(shared), axis=0)
    if "down" in params:
        kernel = kernel + jnp.einsum("lir,lro->lio", params["down"], params["up"])
    entry = jnp.arange(diagonal.shape[-1])
    kernel = kernel.at[:, entry, entry].add(diagonal)
    own = {"bias": params["bias"]} if "bias" in params else {}
    return {"kernel": kernel, **own}
