"""A linear layer whose parameters' gradient is summed up in float32, over devices too."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


@jax.custom_vjp
def product(x: Float[Array, "*B D"], kernel: Float[Array, "D E"]) -> Float[Array, "*B E"]:
    """x @ kernel.

    The kernel's gradient is a sum over all frames of the batch. A product of bfloat16 has bfloat16
    results, and where the batch is spread over devices, those would be what these add up.
    """
    return jnp.matmul(x, kernel)


def _product_fwd(x, kernel):
    # Written out: a policy of rematerialisation does not look into `product`.
    return jnp.matmul(x, kernel), (x, kernel)


def _product_bwd(residuals, gradient):
    x, kernel = residuals
    summed = jnp.einsum("...d,...e->de", x, gradient, preferred_element_type=jnp.float32)
    return jnp.matmul(gradient, kernel.T), summed.astype(kernel.dtype)


product.defvjp(_product_fwd, _product_bwd)


def _dot_general(x, kernel, dimension_numbers, **_):
    return product(x, kernel)


Linear = functools.partial(nnx.Linear, dot_general=_dot_general)

# Linear, or what takes its place in a block: called with the numbers of inputs and outputs.
MakeLinear = Callable[..., Callable[[Array], Array]]
