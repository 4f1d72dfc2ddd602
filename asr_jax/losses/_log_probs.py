"""The two log-probabilities that the lattice needs of a cell's V logits, and their gradient."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int


@partial(jax.custom_vjp, nondiff_argnames=("blank_id",))
def edge_log_probs(
    logits: Float32[Array, "B T U1 V"], labels: Int[Array, "B U"], blank_id: int
) -> tuple[Float32[Array, "B T U1"], Float32[Array, "B T U"]]:
    """log P(blank) in every cell (t, u), and log P(label u + 1) in all but the last column."""
    return edges_and_normalizer(logits, labels, blank_id)[:2]


def edges_and_normalizer(logits, labels, blank_id):
    """The same, and each cell's logsumexp: with it the backward pass has its softmax in one exp."""
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    label = jnp.take_along_axis(logits[:, :, :-1], labels[:, None, :, None], axis=-1)[..., 0]
    return logits[..., blank_id] - normalizer, label - normalizer[..., :-1], normalizer


def logits_gradient(logits, normalizer, labels, blank_id, d_blank, d_label):
    """From gradients of the two edges to that of the logits, in one pass and without a scatter."""
    symbols = jnp.arange(logits.shape[-1])
    is_label = jnp.pad(labels, ((0, 0), (0, 1)))[:, None, :, None] == symbols
    d_label = jnp.pad(d_label, ((0, 0), (0, 0), (0, 1)))[..., None]
    d_blank = d_blank[..., None]
    softmax = jnp.exp(logits - normalizer[..., None])
    return (
        jnp.where(symbols == blank_id, d_blank, 0.0)
        + jnp.where(is_label, d_label, 0.0)
        - (d_blank + d_label) * softmax
    )


def _fwd(logits, labels, blank_id):
    blank, label, normalizer = edges_and_normalizer(logits, labels, blank_id)
    return (blank, label), (logits, normalizer, labels)


def _bwd(blank_id, residuals, cotangents):
    logits, normalizer, labels = residuals
    return logits_gradient(logits, normalizer, labels, blank_id, *cotangents), None


edge_log_probs.defvjp(_fwd, _bwd)
