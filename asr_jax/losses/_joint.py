"""Log-probabilities of blanks and labels, from chunks of frames instead of the 4-D logits.

Of a cell's V logits the loss needs three: their logsumexp, the blank's and the next label's. A scan
computes them for `chunk_frames` frames at a time, and the backward pass recomputes each chunk's
logits, so that no more than a chunk of the B * T * (U + 1) * V numbers ever exists.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from asr_jax.losses._log_probs import edges_and_normalizer, logits_gradient

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


@partial(jax.custom_vjp, nondiff_argnames=("blank_id", "activation", "chunk_frames"))
def chunked_log_probs(
    encoded: Float[Array, "B T D"],
    predicted: Float[Array, "B U1 D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"],
    labels: Int[Array, "B U"],
    blank_id: int,
    activation: str,
    chunk_frames: int,
) -> tuple[Float32[Array, "B T U1"], Float32[Array, "B T U"]]:
    """log P(blank) and log P(next label) under activation(encoded + predicted) @ kernel + bias.

    Matrix products take the inputs' dtype and accumulate in float32.
    """
    blank, label, _ = _forward(
        encoded, predicted, kernel, bias, labels, blank_id, activation, chunk_frames
    )
    return blank, label


def _forward(encoded, predicted, kernel, bias, labels, blank_id, activation, chunk_frames):
    def body(_, chunk):
        hidden, _ = _hidden(chunk, predicted, kernel, activation)
        return None, edges_and_normalizer(_logits(hidden, kernel, bias), labels, blank_id)

    _, planes = jax.lax.scan(body, None, _split(encoded, chunk_frames))
    return tuple(_join(plane, encoded.shape[1]) for plane in planes)


def _fwd(encoded, predicted, kernel, bias, labels, blank_id, activation, chunk_frames):
    blank, label, normalizer = _forward(
        encoded, predicted, kernel, bias, labels, blank_id, activation, chunk_frames
    )
    return (blank, label), (encoded, predicted, kernel, bias, labels, normalizer)


def _bwd(blank_id, activation, chunk_frames, residuals, cotangents):
    encoded, predicted, kernel, bias, labels, normalizer = residuals

    def body(sums, chunk):
        encoded, normalizer, d_blank, d_label = chunk
        hidden, pull = _hidden(encoded, predicted, kernel, activation)
        logits = _logits(hidden, kernel, bias)
        d_logits = logits_gradient(logits, normalizer, labels, blank_id, d_blank, d_label)
        # Flat rows, a transpose that is made for good, and the bias's sum as a product: together
        # an eighth of the whole loss on CPUs, where the plainer forms lower to slower code.
        rows = d_logits.reshape(-1, d_logits.shape[-1])
        d_bias = jnp.dot(jnp.ones(len(rows)), rows, precision="highest")
        rows = rows.astype(hidden.dtype)
        columns = jax.lax.optimization_barrier(hidden.reshape(-1, hidden.shape[-1]).T)
        d_kernel = _dot("dn,nv->dv", columns, rows)
        (d_sum,) = pull(_dot("nv,dv->nd", rows, kernel).reshape(hidden.shape))
        grads = d_sum.sum(1), d_kernel, d_bias
        return jax.tree.map(jnp.add, sums, grads), d_sum.sum(2)

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (predicted, kernel, bias)]
    chunks = [_split(x, chunk_frames) for x in (encoded, normalizer, *cotangents)]
    sums, d_encoded = jax.lax.scan(body, tuple(zeros), tuple(chunks))
    grads = _join(d_encoded, encoded.shape[1]), *sums
    return *(g.astype(x.dtype) for g, x in zip(grads, residuals)), None


chunked_log_probs.defvjp(_fwd, _bwd)


def _hidden(encoded, predicted, kernel, activation):
    pre = encoded.astype(jnp.float32)[:, :, None] + predicted.astype(jnp.float32)[:, None]
    hidden, pull = jax.vjp(ACTIVATIONS[activation], pre)
    dtype = jnp.result_type(encoded, predicted, kernel)
    return hidden.astype(dtype), pull


def _logits(hidden, kernel, bias):
    return _dot("btud,dv->btuv", hidden, kernel) + bias.astype(jnp.float32)


def _dot(subscripts, a, b):
    return jnp.einsum(subscripts, a, b.astype(a.dtype), preferred_element_type=jnp.float32)


def _split(x, chunk_frames):
    """[B, T, ...] to [chunks, B, chunk_frames, ...]; frames added at the end are zero."""
    batch, frames, *rest = x.shape
    chunks = -(-frames // chunk_frames)
    x = jnp.pad(x, [(0, 0), (0, chunks * chunk_frames - frames)] + [(0, 0)] * len(rest))
    return jnp.moveaxis(x.reshape(batch, chunks, chunk_frames, *rest), 1, 0)


def _join(x, frames):
    """The inverse."""
    chunks, batch, chunk_frames, *rest = x.shape
    return jnp.moveaxis(x, 0, 1).reshape(batch, chunks * chunk_frames, *rest)[:, :frames]
