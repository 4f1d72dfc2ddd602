"""The loss of a token-and-duration transducer (TDT)."""

from collections.abc import Sequence
from functools import partial

import jax
from jaxtyping import Array, Float, Float32, Integer, Key

from asr_jax.losses._arguments import Computation, Implementation, JointArguments
from asr_jax.losses._cells import VocabularyLayout
from asr_jax.losses._checks import check_durations, check_joint, check_sigma
from asr_jax.losses._durations import log_likelihood
from asr_jax.losses._edges import joint_loss
from asr_jax.losses._joint import Activation


def tdt_loss(
    encoded: Float[Array, "B T D"],
    predicted: Float[Array, "B U1 D"],
    kernel: Float[Array, "D W"],
    bias: Float[Array, " W"] | None,
    labels: Integer[Array, "B U"],
    encoded_lengths: Integer[Array, " B"],
    label_lengths: Integer[Array, " B"],
    *,
    durations: Sequence[int] = (0, 1, 2, 3, 4),
    sigma: float = 0.0,
    blank_id: int = 0,
    activation: Activation = "tanh",
    chunk_frames: int | None = None,
    utterances_per_group: int | None = None,
    negligible_gradient: float = 0.0,
    implementation: Implementation = None,
    dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
) -> Float32[Array, " B"]:
    """Return -log P(labels | encoded) in nats, of a transducer whose symbols have durations.

    At frame t after u labels the joint chooses a symbol and, independently, its duration: the next
    symbol starts that many frames later. Labels may last zero frames, blanks last at least one, and
    the last symbol is a blank that ends with the last frame (Xu et al. 2023, arXiv 2304.06795).
    Decoding is faster because it skips the frames of each duration. As usual for such losses, every
    array is an argument of its own.

    Args:
        kernel: output layer, W = V + X columns: first the V symbols, then the X durations.
        bias: of the output layer, or None.
        durations: the number of frames that each of the X columns stands for.
        sigma: subtracted from every log-probability of a symbol, in nats. It penalizes each symbol,
            so that few symbols of long duration are preferred (equation 8; 0.05 in the paper).
            Only at 0 is the loss a log-probability.

    The other arguments, padding, lengths and memory are those of `transducer_loss`. An utterance
    whose frames no sequence of durations fills has loss inf and gradient zero.

    Raises:
        ValueError: a shape, dtype or option does not fit.
    """
    durations = check_durations(durations)
    check_sigma(sigma)
    joint = JointArguments(encoded, predicted, kernel, bias, labels, encoded_lengths, label_lengths)
    computation = Computation(
        activation, chunk_frames, utterances_per_group, negligible_gradient, implementation, dropout
    )
    check_joint(joint, computation, blank_id=blank_id, durations=durations)
    layout = VocabularyLayout(blank_id, kernel.shape[1] - len(durations))
    return joint_loss(partial(_score, durations, sigma), joint, computation, layout, key)


def _score(durations, sigma, edges, frame_lengths, label_lengths):
    duration = jax.nn.log_softmax(edges.rest, -1)
    blank, label = edges.blank - sigma, edges.label - sigma
    return log_likelihood(blank, label, duration, frame_lengths, label_lengths, durations)
