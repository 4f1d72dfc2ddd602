"""The arguments that every loss of a joint takes, as a tuple each."""

from typing import Literal, NamedTuple

from jaxtyping import Array, Float, Integer

from asr_jax.losses._joint import Activation

Named = Literal["reference", "xla", "mosaic_gpu"]
Implementation = Named | None


class JointArguments(NamedTuple):
    """The arrays that every loss of a joint takes, U1 = U + 1."""

    encoded: Float[Array, "B T D"]
    predicted: Float[Array, "B U1 D"]
    kernel: Float[Array, "D V"]
    bias: Float[Array, " V"] | None
    labels: Integer[Array, "B U"]
    encoded_lengths: Integer[Array, " B"]
    label_lengths: Integer[Array, " B"]


class Computation(NamedTuple):
    """How the logits of a joint are computed; see `transducer_loss`."""

    activation: Activation
    chunk_frames: int | None = None
    utterances_per_group: int | None = None
    negligible_gradient: float = 0.0
    implementation: Implementation = None
