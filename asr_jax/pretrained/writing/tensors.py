"""The tensors of a Parakeet model, computed from the parameters of asr_jax.

This is the inverse of parameters.py, with transformers' names. What folded on the way in stays
folded: biases that another bias holds are zeros, and a BatchNorm has mean 0 and variance 1.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from asr_jax.config import Config
from asr_jax.pretrained.parameters import (
    BATCH_NORM_EPSILON,
    FORGET_GATE,
    LINEAR,
    NORMS,
    WITHOUT_BIAS,
)

Tensors = Iterator[tuple[str, np.ndarray]]


def tensors(params: Mapping[str, np.ndarray], config: Config) -> dict[str, np.ndarray]:
    """Return the tensors by transformers' names.

    Args:
        params: float32 parameters by their paths, with dots.
        config: a config that `require_expressible` accepts.
    """
    made = dict(_subsampling(params, config))
    for layer in range(config.encoder.layers):
        block = f"encoder.layers.{layer}."
        made |= {block + name: value for name, value in _block(params, config, layer)}
    if config.objective.has_ctc_head:
        made["ctc_head.weight"] = _blank_last(params["ctc_head.kernel"].T)[..., None]
        made["ctc_head.bias"] = _blank_last(params["ctc_head.bias"])
    if config.objective.kind != "ctc":
        made |= dict(_predictor(params, config)) | dict(_joint(params, config))
    return {name: np.array(value, order="C") for name, value in made.items()}


def _blank_last(labels: np.ndarray) -> np.ndarray:
    """Move the first of the labels, which lie along the first axis, to the end."""
    return np.roll(labels, -1, axis=0)


def _subsampling(params: Mapping[str, np.ndarray], config: Config) -> Tensors:
    ours, theirs = "encoder.subsampling.", "encoder.subsampling.layers."
    yield f"{theirs}0.weight", params[f"{ours}first.kernel"].transpose(3, 2, 0, 1)
    yield f"{theirs}0.bias", params[f"{ours}first.bias"]
    for name, number in {"second": 2, "third": 5}.items():
        if f"{ours}{name}.depthwise" in params:
            depthwise = params[f"{ours}{name}.depthwise"]
            yield f"{theirs}{number}.weight", depthwise.transpose(2, 0, 1)[:, None]
            yield f"{theirs}{number}.bias", np.zeros(depthwise.shape[2], np.float32)
            pointwise = f"{ours}{name}.pointwise"
            yield f"{theirs}{number + 1}.weight", params[f"{pointwise}.kernel"].T[..., None, None]
            yield f"{theirs}{number + 1}.bias", params[f"{pointwise}.bias"]
    project = params[f"{ours}project.kernel"]
    channels, width = config.encoder.subsampling_channels, config.encoder.width
    project = project.reshape(-1, channels, width).transpose(2, 1, 0)
    yield "encoder.subsampling.linear.weight", project.reshape(width, -1)
    yield "encoder.subsampling.linear.bias", params[f"{ours}project.bias"]


def _block(params: Mapping[str, np.ndarray], config: Config, layer: int) -> Tensors:
    def read(name: str) -> np.ndarray:
        return params[f"encoder.blocks.{name}"][layer]

    has_bias, width = config.encoder.bias, config.encoder.width
    for ours, theirs in {**LINEAR, **WITHOUT_BIAS}.items():
        weight = read(f"{ours}.kernel").T
        yield f"{theirs}.weight", weight[..., None] if theirs.startswith("conv.") else weight
        if has_bias and ours in LINEAR:
            yield f"{theirs}.bias", read(f"{ours}.bias")
    for ours, theirs in NORMS.items():
        yield f"{theirs}.weight", read(f"{ours}.scale")
        yield f"{theirs}.bias", read(f"{ours}.bias")
    yield "self_attn.bias_u", read("attention.content_bias")
    yield "self_attn.bias_v", read("attention.position_bias")
    yield "conv.depthwise_conv.weight", read("convolution.depthwise").T[:, None]
    yield "conv.norm.weight", read("convolution.depthwise_norm.scale")
    yield "conv.norm.bias", read("convolution.depthwise_norm.bias")
    if has_bias:
        for name in ("self_attn.q_proj", "self_attn.k_proj", "conv.depthwise_conv"):
            yield f"{name}.bias", np.zeros(width, np.float32)
    if config.encoder.convolution_norm == "affine":
        variance = np.float32(1 - BATCH_NORM_EPSILON)
        yield "conv.norm.running_mean", np.zeros(width, np.float32)
        yield "conv.norm.running_var", np.full(width, variance)
        yield "conv.norm.num_batches_tracked", np.zeros((), np.int64)


def _predictor(params: Mapping[str, np.ndarray], config: Config) -> Tensors:
    embedding = params["predictor.embedding.embedding"]
    yield "decoder.embedding.weight", _blank_last(embedding)
    for layer in range(config.predictor.layers):

        def read(name: str, layer: int = layer) -> np.ndarray:
            if layer == 0:
                return params[f"predictor.{name}"]
            return params[f"predictor.upper.{name}"][layer - 1]

        gates = np.split(read("input.bias"), 4)
        gates[FORGET_GATE] = gates[FORGET_GATE] + 1  # the cell here adds it
        bias = np.concatenate(gates)
        yield f"decoder.lstm.weight_ih_l{layer}", read("input.kernel").T
        yield f"decoder.lstm.weight_hh_l{layer}", read("recurrent.kernel").T
        yield f"decoder.lstm.bias_ih_l{layer}", bias
        yield f"decoder.lstm.bias_hh_l{layer}", np.zeros_like(bias)


def _joint(params: Mapping[str, np.ndarray], config: Config) -> Tensors:
    def head(name: str) -> np.ndarray:
        out = params[f"joint.out.{name}"].T
        labels = len(params["predictor.embedding.embedding"])
        return np.concatenate([_blank_last(out[:labels]), out[labels:]])

    yield "encoder_projector.weight", params["joint.encoder_projection.kernel"].T
    yield "encoder_projector.bias", params["joint.encoder_projection.bias"]
    yield "decoder.decoder_projector.weight", params["joint.predictor_projection.kernel"].T
    yield "decoder.decoder_projector.bias", np.zeros(config.joint.width, np.float32)
    yield "joint.head.weight", head("kernel")
    yield "joint.head.bias", head("bias")
