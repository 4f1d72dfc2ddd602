"""A linear layer whose parameter gradient is summed in float32, also across devices."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


@jax.custom_vjp
def product(x: Float[Array, "*B D"], kernel: Float[Array, "D E"]) -> Float[Array, "*B E"]:
    """Return x @ kernel, with a kernel gradient that is summed in float32.

    The kernel's gradient is a sum over all frames of the batch. A bfloat16 product has bfloat16
    results, and with the batch sharded over devices those would be added up.
    """
    return jnp.matmul(x, kernel)


def _product_fwd(x, kernel):
    # Not a call of `product`, which rematerialization policies do not look into.
    return jnp.matmul(x, kernel), (x, kernel)


def _product_bwd(residuals, gradient):
    x, kernel = residuals
    summed = jnp.einsum("...d,...e->de", x, gradient, preferred_element_type=jnp.float32)
    return jnp.matmul(gradient, kernel.T), summed.astype(kernel.dtype)


product.defvjp(_product_fwd, _product_bwd)


def _dot_general(x, kernel, dimension_numbers, **_):
    return product(x, kernel)


Linear = functools.partial(nnx.Linear, dot_general=_dot_general)

# A constructor of linear layers for a block: Linear, or a partial ResidualLinear.
MakeLinear = Callable[..., Callable[[Array], Array]]
