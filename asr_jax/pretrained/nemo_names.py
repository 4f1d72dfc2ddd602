"""Names of tensors in NeMo and transformers, in the one form that the mapping reads and writes.

That form is the names of transformers' Parakeet models. Source: convert_nemo_to_hf.py of
transformers.
"""

import re
from collections.abc import Sequence

from asr_jax.pretrained.weights import Weight, Weights

Pairs = Sequence[tuple[str, str]]
"""Parts of names in another form, and in the form that the mapping reads."""

NEMO: Pairs = (
    ("encoder.pre_encode.conv.", "encoder.subsampling.layers."),
    ("encoder.pre_encode.out.", "encoder.subsampling.linear."),
    (".self_attn.linear_pos.", ".self_attn.relative_k_proj."),
    (".self_attn.linear_out.", ".self_attn.o_proj."),
    *((f".self_attn.linear_{x}.", f".self_attn.{x}_proj.") for x in "qkv"),
    *((f".self_attn.pos_bias_{x}", f".self_attn.bias_{x}") for x in "uv"),
    (".conv.batch_norm.", ".conv.norm."),
    ("decoder.prediction.embed.", "decoder.embedding."),
    ("decoder.prediction.dec_rnn.lstm.", "decoder.lstm."),
    ("joint.enc.", "encoder_projector."),
    ("joint.pred.", "decoder.decoder_projector."),
)
# The causal subsampling of transformers' streaming models.
STREAMING: Pairs = (
    ("encoder.subsampling.conv_in.", "encoder.subsampling.layers.0."),
    ("encoder.subsampling.layers.0.depthwise_conv.", "encoder.subsampling.layers.2."),
    ("encoder.subsampling.layers.0.pointwise_conv.", "encoder.subsampling.layers.3."),
    ("encoder.subsampling.layers.1.depthwise_conv.", "encoder.subsampling.layers.5."),
    ("encoder.subsampling.layers.1.pointwise_conv.", "encoder.subsampling.layers.6."),
)
# What NeMo computes from its config, and counters that nothing reads.
_NOT_PARAMETERS = re.compile(r"preprocessor\..*|encoder\.pos_enc\..*|.*\.num_batches_tracked")
_HEADS = (
    (r"^(ctc_)?decoder\.decoder_layers\.0\.", "ctc_head."),
    # The output layer follows an activation, and a dropout if there is one.
    (r"^joint\.joint_net\.[12]\.", "joint.head."),
)


def renamed(weights: Weights) -> dict[str, Weight]:
    """Return the parameters by transformers' names."""
    return {
        _new_name(name): weight
        for name, weight in weights.items()
        if not _NOT_PARAMETERS.fullmatch(name)
    }


def _new_name(name: str) -> str:
    for theirs, ours in (*NEMO, *STREAMING):
        name = name.replace(theirs, ours)
    for pattern, ours in _HEADS:
        name = re.sub(pattern, ours, name)
    return name


def name_in(pairs: Pairs, name: str) -> str:
    """Return a tensor's name in the other form of `pairs`."""
    for theirs, ours in pairs:
        if ours in name:
            return name.replace(ours, theirs)
    return name
