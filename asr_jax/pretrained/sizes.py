"""Sizes of a model, read from the shapes of its tensors.

Configs state some of them, and leave out others or state them wrongly; the weights are what runs.
"""

import re
from typing import Literal, NamedTuple

from asr_jax.pretrained.weights import Weights


class Sizes(NamedTuple):
    """The sizes of an encoder and its heads."""

    layers: int
    width: int
    heads: int
    inner_width: int
    kernel_frames: int
    channels: int
    """Channels of the subsampling."""
    factor: Literal[4, 8]
    """Feature frames per encoder frame."""
    bins: int
    """Mel bins that the subsampling leaves."""
    has_attention_bias: bool
    """True if attention and feed-forward have biases."""
    has_convolution_bias: bool
    """True if the layers of the convolution module have biases."""
    has_statistics: bool
    """True if the norm after the depthwise convolution is a BatchNorm."""
    vocabulary: int
    """Labels, the blank included."""
    has_ctc: bool
    lstm_layers: int
    """0 for a model without a predictor."""
    embedding_width: int
    predictor_width: int
    joint_width: int
    durations: int
    """Number of durations; 0 for a transducer without them."""

    @property
    def has_bias(self) -> bool:
        """True if any linear layer of a block has a bias."""
        return self.has_attention_bias or self.has_convolution_bias


def sizes_of(weights: Weights) -> Sizes:
    """Return the sizes of a model. Raises ValueError, naming a tensor, if one is missing."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in weights:
            raise ValueError(f"tensor {name} is missing")
        found = weights[name].shape
        if len(found) != dimensions:
            raise ValueError(f"tensor {name} has shape {found}, must have {dimensions} axes")
        return found

    block = "encoder.layers.0."
    heads, head_width = shape(f"{block}self_attn.bias_u", 2)
    (width,) = shape(f"{block}norm_out.weight", 1)
    channels = shape("encoder.subsampling.layers.0.weight", 4)[0]
    has_ctc, has_joint = "ctc_head.weight" in weights, "joint.head.weight" in weights
    if not (has_ctc or has_joint):
        raise ValueError("tensor joint.head.weight is missing, and so is ctc_head.weight")
    embedding = shape("decoder.embedding.weight", 2) if has_joint else (0, 0)
    head = shape("joint.head.weight", 2) if has_joint else shape("ctc_head.weight", 3)
    return Sizes(
        layers=_count(weights, r"encoder\.layers\.(\d+)\..*"),
        width=width,
        heads=heads,
        inner_width=shape(f"{block}feed_forward1.linear1.weight", 2)[0],
        kernel_frames=shape(f"{block}conv.depthwise_conv.weight", 3)[2],
        channels=channels,
        factor=8 if "encoder.subsampling.layers.6.weight" in weights else 4,
        bins=shape("encoder.subsampling.linear.weight", 2)[1] // max(1, channels),
        has_attention_bias=f"{block}feed_forward1.linear1.bias" in weights,
        has_convolution_bias=f"{block}conv.pointwise_conv1.bias" in weights,
        has_statistics=f"{block}conv.norm.running_mean" in weights,
        vocabulary=embedding[0] if has_joint else head[0],
        has_ctc=has_ctc,
        lstm_layers=_count(weights, r"decoder\.lstm\.weight_ih_l(\d+)"),
        embedding_width=embedding[1],
        predictor_width=shape("decoder.lstm.weight_hh_l0", 2)[1] if has_joint else 0,
        joint_width=head[1] if has_joint else 0,
        durations=head[0] - embedding[0] if has_joint else 0,
    )


def _count(weights: Weights, pattern: str) -> int:
    """Return the number of layers, which are numbered from 0."""
    found = (re.fullmatch(pattern, name) for name in weights)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
