"""A layer with a shared matrix and residual matrices against their explicit sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.layers.residual import ResidualLinear, folded


def random_layer(inputs, outputs, rank):
    """Make a layer without zero parameters."""
    layer = ResidualLinear(inputs, outputs, rank=rank, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)
    keys = iter(jax.random.split(jax.random.key(1), 5))
    return graphdef, jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), params)


@pytest.mark.parametrize("inputs, outputs, rank", [(6, 6, 2), (4, 7, 3), (7, 4, 0)])
def test_output_and_gradient_equal_those_of_the_explicit_matrix(inputs, outputs, rank):
    graphdef, params = random_layer(inputs, outputs, rank)
    x, weight = jnp.arange(5.0 * inputs).reshape(5, inputs) / 10, jnp.cos(jnp.arange(outputs))

    def written_out(p, x):
        matrix = p["kernel"] + jnp.zeros((inputs, outputs)).at[
            jnp.arange(min(inputs, outputs)), jnp.arange(min(inputs, outputs))
        ].set(p["diagonal"])
        if rank:
            matrix = matrix + p["down"] @ p["up"]
        return x @ matrix + p["bias"]

    pure = nnx.to_pure_dict(params)
    layer = lambda p, x: nnx.merge(graphdef, p)(x)
    np.testing.assert_allclose(layer(pure, x), written_out(pure, x), rtol=1e-5)
    # `folded` makes the same matrix from a stack of one layer.
    (alone,) = folded(jax.tree.map(lambda a: a[None], pure))["kernel"]
    np.testing.assert_allclose(x @ alone + pure["bias"], written_out(pure, x), rtol=1e-5)

    total = lambda f: jax.grad(lambda p, x: jnp.sum(weight * jnp.sin(f(p, x))), (0, 1))(pure, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        total(layer),
        total(written_out),
    )


def test_gradients_of_residual_matrices_are_summed_in_float32():
    """4096 frames each add 1; a sum in bfloat16 would stop at 256."""
    graphdef, params = random_layer(4, 4, 2)
    params = jax.tree.map(lambda a: jnp.ones(a.shape, jnp.bfloat16), params)
    x = jnp.ones((4096, 4), jnp.bfloat16)
    total = lambda p: jnp.sum(nnx.merge(graphdef, p)(x), dtype=jnp.float32)
    gradients = nnx.to_pure_dict(jax.grad(total)(params))
    np.testing.assert_array_equal(gradients["diagonal"].astype(jnp.float32), 4096)
    np.testing.assert_array_equal(gradients["kernel"].astype(jnp.float32), 4096)
    np.testing.assert_array_equal(gradients["down"].astype(jnp.float32), 4 * 4096)
