"""The arguments that every loss of a joint network takes, grouped."""

from typing import Literal, NamedTuple

from jaxtyping import Array, Float, Integer

from asr_jax.losses._dropout import CellHashes
from asr_jax.losses._joint import Activation

Named = Literal["reference", "xla", "mosaic_gpu"]
Implementation = Named | None


class JointArguments(NamedTuple):
    """The arrays that every loss of a joint network takes; U1 = U + 1.

    hashes: the random part of dropout, see `Computation.dropout`.
    """

    encoded: Float[Array, "B T D"]
    predicted: Float[Array, "B U1 D"]
    kernel: Float[Array, "D V"]
    bias: Float[Array, " V"] | None
    labels: Integer[Array, "B U"]
    encoded_lengths: Integer[Array, " B"]
    label_lengths: Integer[Array, " B"]
    hashes: CellHashes = CellHashes()


class Computation(NamedTuple):
    """How the logits of a joint network are computed.

    activation: applied to encoded + predicted, before the output layer.
    chunk_frames: a step computes as many cells as this many frames of the padded batch have. None:
        chosen by device, see `choose_tile`.
    utterances_per_group: [T, U1] planes exist for at most this many utterances at a time, a divisor
        of the batch, at least one per device. None: all, but few of a very large batch.
    negligible_gradient: tiles in which no occupancy exceeds this are left out of the backward pass.
        At 0 that is exact. 1e-9 is far below the rounding of float32 sums of occupancies, and skips
        most of the backward pass of a trained model.
    implementation: "xla" (or None), in tiles; "reference", the plain 4-D form; "mosaic_gpu",
        kernels for bfloat16 on Hopper GPUs, on one device or under shard_map with check_vma=False.
    dropout: fraction of hidden states between activation and output layer that is set to zero.
    """

    activation: Activation
    chunk_frames: int | None = None
    utterances_per_group: int | None = None
    negligible_gradient: float = 0.0
    implementation: Implementation = None
    dropout: float = 0.0
