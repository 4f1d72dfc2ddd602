"""Low-rank adapters of linear layers (LoRA, arXiv 2106.09685)."""

import fnmatch
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from asr_jax.layers.residual import low_rank_sum


class AdaptedLinear(nnx.Module):
    """x (W + A B) + b: a linear layer with a matrix A B of low rank beside its own.

    It is `ResidualLinear` without the diagonal, over a matrix that training does not change. B
    starts as zeros, so that an adapted model starts as the model itself. The layer may be a stack
    of layers: all parameters have its leading axes.
    """

    def __init__(self, linear: nnx.Linear, rank: int, *, rngs: nnx.Rngs):
        *stack, inputs, outputs = linear.kernel.shape
        initializer = nnx.initializers.lecun_normal(batch_axis=tuple(range(len(stack))))
        self.kernel, self.bias = linear.kernel, linear.bias
        self.down = nnx.Param(initializer(rngs.params(), (*stack, inputs, rank)))
        self.up = nnx.Param(jnp.zeros((*stack, rank, outputs)))

    @property
    def matrix(self) -> Float[Array, "*stack D E"]:
        """W + A B, for callers that need the matrix itself."""
        return _added(self.kernel[...], self.down[...], self.up[...])

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B E"]:
        y = low_rank_sum(x, self.kernel[...], self.down[...], self.up[...])
        return y if self.bias is None else y + self.bias[...]


def adapt(model: nnx.Module, patterns: Sequence[str], *, rank: int, rngs: nnx.Rngs) -> None:
    """Replace every linear layer of `model` whose name matches a pattern by an AdaptedLinear.

    Names are paths, such as `encoder.blocks.attention.query` or `joint.out`; a stack of blocks is
    one layer. Raises ValueError for a pattern that matches no linear layer.
    """
    layers = {
        ".".join(map(str, path)): path
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.Linear)
    }
    for pattern in patterns:
        if not fnmatch.filter(layers, pattern):
            raise ValueError(
                f"adapter.pattern = {pattern!r}: matches no linear layer of the model; they are "
                f"{', '.join(sorted(layers))}"
            )
    chosen = [n for n in sorted(layers) if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    for name in chosen:
        *parents, attribute = layers[name]
        parent = model
        for part in parents:
            parent = getattr(parent, str(part))
        linear = getattr(parent, str(attribute))
        setattr(parent, str(attribute), AdaptedLinear(linear, rank, rngs=rngs))


def _added(
    kernel: Float[Array, "*stack D E"],
    down: Float[Array, "*stack D R"],
    up: Float[Array, "*stack R E"],
) -> Float[Array, "*stack D E"]:
    return kernel + jnp.einsum("...ir,...ro->...io", down, up, precision="highest")


def merged(params: dict[str, PyTree]) -> dict[str, PyTree]:
    """Replace the parameters of every AdaptedLinear by Linear's, with the kernel W + A B."""
    if "down" in params and "diagonal" not in params:
        own = {name: value for name, value in params.items() if name not in ("down", "up")}
        return own | {"kernel": _added(params["kernel"], params["down"], params["up"])}
    return {
        name: merged(inner) if isinstance(inner, dict) else inner for name, inner in params.items()
    }
