"""Names of tensors in NeMo and transformers, in the one form that the mapping reads.

That form is the names of transformers' Parakeet models. Source: convert_nemo_to_hf.py of
transformers.
"""

import re

from asr_jax.pretrained.weights import Weight, Weights

# What NeMo computes from its config, and counters that nothing reads.
_NOT_PARAMETERS = re.compile(r"preprocessor\..*|encoder\.pos_enc\..*|.*\.num_batches_tracked")
_RENAMED = (
    (r"^encoder\.pre_encode\.conv\.", "encoder.subsampling.layers."),
    (r"^encoder\.pre_encode\.out\.", "encoder.subsampling.linear."),
    (r"\.self_attn\.linear_pos\.", ".self_attn.relative_k_proj."),
    (r"\.self_attn\.linear_out\.", ".self_attn.o_proj."),
    (r"\.self_attn\.linear_([qkv])\.", r".self_attn.\1_proj."),
    (r"\.self_attn\.pos_bias_([uv])$", r".self_attn.bias_\1"),
    (r"\.conv\.batch_norm\.", ".conv.norm."),
    (r"^(ctc_)?decoder\.decoder_layers\.0\.", "ctc_head."),
    (r"^decoder\.prediction\.embed\.", "decoder.embedding."),
    (r"^decoder\.prediction\.dec_rnn\.lstm\.", "decoder.lstm."),
    (r"^joint\.enc\.", "encoder_projector."),
    (r"^joint\.pred\.", "decoder.decoder_projector."),
    # The output layer follows an activation, and a dropout if there is one.
    (r"^joint\.joint_net\.[12]\.", "joint.head."),
    # transformers' causal subsampling.
    (r"^encoder\.subsampling\.conv_in\.", "encoder.subsampling.layers.0."),
    (r"^encoder\.subsampling\.layers\.0\.depthwise_conv\.", "encoder.subsampling.layers.2."),
    (r"^encoder\.subsampling\.layers\.0\.pointwise_conv\.", "encoder.subsampling.layers.3."),
    (r"^encoder\.subsampling\.layers\.1\.depthwise_conv\.", "encoder.subsampling.layers.5."),
    (r"^encoder\.subsampling\.layers\.1\.pointwise_conv\.", "encoder.subsampling.layers.6."),
)


def renamed(weights: Weights) -> dict[str, Weight]:
    """Return the parameters by transformers' names."""
    return {
        _new_name(name): weight
        for name, weight in weights.items()
        if not _NOT_PARAMETERS.fullmatch(name)
    }


def _new_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
