"""The transducer loss of 4-D logits."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Integer

from asr_jax.losses._cells import (
    Factorization,
    Planes,
    VocabularyLayout,
    edges,
    labels_of_cells,
    select_planes,
)
from asr_jax.losses._checks import (
    as_int32,
    check_blank,
    check_float,
    check_integer,
    check_objective,
)
from asr_jax.losses._edges import at_least_one_frame
from asr_jax.losses._lattice import Topology, log_likelihood
from asr_jax.losses._sharding import vary_alike


def rnnt_loss(
    logits: Float[Array, "B T U1 V"],
    labels: Integer[Array, "B U"],
    logit_lengths: Integer[Array, " B"],
    label_lengths: Integer[Array, " B"],
    *,
    blank_id: int = 0,
    topology: Topology = "rnnt",
    factorization: Factorization = "softmax",
    fastemit_lambda: float = 0.0,
) -> Float32[Array, " B"]:
    """Return -log P(labels | logits) of each utterance, in nats, as other libraries define it.

    P is summed over all alignments (Graves 2012, arXiv 1211.3711), in float32. `transducer_loss`
    returns the same number with a small fraction of the memory, and explains topology,
    factorization and fastemit_lambda.

    Args:
        logits: unnormalized scores; cell (t, u) is frame t after u labels, U1 = U + 1.
        labels: label ids without blanks.
        logit_lengths: frames of each utterance. Zero frames: loss inf, gradient zero.
        label_lengths: labels of each utterance; zero, or more than frames, are fine.
        blank_id: index of the blank in the vocabulary.

    Padding beyond the lengths may hold anything, even NaN. A length beyond its axis gives inf.

    Raises:
        ValueError: a shape, dtype or option does not fit, or blank_id is outside the vocabulary.
    """
    check_float("logits", logits, None, None, None, None)
    batch, _, cells, vocabulary = logits.shape
    if cells == 0:
        raise ValueError(f"logits.shape = {logits.shape}: must have U + 1 cells, at least one")
    check_integer("labels", labels, batch, cells - 1)
    check_integer("logit_lengths", logit_lengths, batch)
    check_integer("label_lengths", label_lengths, batch)
    check_blank(blank_id, vocabulary)
    check_objective(topology, factorization, fastemit_lambda)
    logits, logit_lengths = at_least_one_frame(logits, logit_lengths)
    integers = as_int32(labels, logit_lengths, label_lengths)
    logits, labels, logit_lengths, label_lengths = vary_alike((logits, *integers))
    frames = logits.shape[1]
    layout = VocabularyLayout(blank_id, vocabulary, factorization)
    u = jnp.arange(cells)
    real_frames = jnp.arange(frames)[:, None] < logit_lengths[:, None, None]
    real = real_frames & (u <= label_lengths[:, None, None])
    labels = labels_of_cells(labels, label_lengths, layout)
    planes: Planes = select_planes(logits, labels, real, layout)  # pyright: ignore[reportAssignmentType]
    blank, label = edges(planes, layout)
    lengths = logit_lengths, label_lengths
    return -log_likelihood(blank, label, *lengths, topology, fastemit_lambda)  # pyright: ignore[reportOperatorIssue]
