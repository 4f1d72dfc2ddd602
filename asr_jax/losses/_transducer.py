"""The transducer's joint network and loss in one."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from asr_jax.losses._checks import check_blank, check_float, check_integer
from asr_jax.losses._joint import ACTIVATIONS, chunked_log_probs
from asr_jax.losses._lattice import log_likelihood
from asr_jax.losses._rnnt import rnnt_loss

IMPLEMENTATIONS = ("reference", "xla")


def transducer_loss(
    encoded: Float[Array, "B T D"],
    predicted: Float[Array, "B U1 D"],
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"] | None,
    labels: Int[Array, "B U"],
    encoded_lengths: Int[Array, " B"],
    label_lengths: Int[Array, " B"],
    *,
    blank_id: int = 0,
    activation: Literal["tanh", "relu"] = "tanh",
    chunk_frames: int | None = None,
    implementation: Literal["reference", "xla", "mosaic_gpu"] | None = None,
) -> Float32[Array, " B"]:
    """-log P(labels | encoded), in nats, for each utterance, without the 4-D tensor of logits.

    logits[b, t, u] = activation(encoded[b, t] + predicted[b, u]) @ kernel + bias, and the loss is
    `rnnt_loss` of them (Graves 2012, arXiv 1211.3711), exactly: chunks of frames are scanned, and
    computed once more in the backward pass. Reverse-mode differentiable in every float argument.

    Args:
        encoded: the encoder's frames, projected to the joint's width.
        predicted: the predictor's outputs after 0..U labels, projected likewise; U1 = U + 1.
        kernel: output layer. Its product runs in the inputs' dtype and accumulates in float32, as
            does everything behind it.
        bias: of the output layer, or None.
        labels: without blanks.
        encoded_lengths: frames of each utterance. Zero frames: loss inf, gradient zero.
        label_lengths: labels of each utterance; zero, or more than frames, are fine.
        blank_id: index of the blank in the vocabulary.
        activation: between the sum and the output layer.
        chunk_frames: frames for which logits exist at a time; None takes a 32nd of them.
        implementation: "xla", the chunked form, or "reference", the plain 4-D one; None chooses.

    What lies beyond the lengths never matters, not even NaN. A length beyond its axis gives inf.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    check_float("encoded", encoded, None, None, None)
    batch, frames, width = encoded.shape
    check_integer("labels", labels, batch, None)
    cells = labels.shape[1] + 1
    check_float("predicted", predicted, batch, cells, width)
    check_float("kernel", kernel, width, None)
    vocabulary = kernel.shape[1]
    bias = jnp.zeros(vocabulary, kernel.dtype) if bias is None else bias
    check_float("bias", bias, vocabulary)
    check_integer("encoded_lengths", encoded_lengths, batch)
    check_integer("label_lengths", label_lengths, batch)
    check_blank(blank_id, vocabulary)
    if activation not in ACTIVATIONS:
        raise ValueError(f"{activation = }: must be one of {', '.join(ACTIVATIONS)}")
    if chunk_frames is not None and chunk_frames < 1:
        raise ValueError(f"{chunk_frames = }: must be positive, or None to choose")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"{implementation = }: must be one of {', '.join(IMPLEMENTATIONS)}")

    encoded = _zero_padding(encoded, encoded_lengths)
    predicted = _zero_padding(predicted, label_lengths + 1)
    if implementation == "reference":
        hidden = ACTIVATIONS[activation](
            encoded[:, :, None].astype(jnp.float32) + predicted[:, None].astype(jnp.float32)
        )
        logits = hidden @ kernel.astype(jnp.float32) + bias.astype(jnp.float32)
        return rnnt_loss(logits, labels, encoded_lengths, label_lengths, blank_id=blank_id)
    # A 32nd: small against the 4-D form, yet enough rows for a matrix product and few scan steps.
    chunk_frames = min(chunk_frames or -(-frames // 32), max(frames, 1)) or 1
    edges = chunked_log_probs(
        encoded, predicted, kernel, bias, labels, blank_id, activation, chunk_frames
    )
    return -log_likelihood(*edges, encoded_lengths, label_lengths)  # pyright: ignore[reportGeneralTypeIssues]


def _zero_padding(rows, lengths):
    real = jnp.arange(rows.shape[1]) < lengths[:, None]
    return jnp.where(real[..., None], rows, 0.0)
