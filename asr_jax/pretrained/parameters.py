"""The parameters of asr_jax, computed from the tensors of a Parakeet model.

Tensors have transformers' names. What this package lacks folds into other parameters exactly:
biases that a softmax cancels or another bias adds to, the statistics of a BatchNorm, the scale of
the encoder's input. Labels move up by one, since the blank, their last, is this package's first.
"""

from collections.abc import Callable, Iterator

import numpy as np

from asr_jax.pretrained.sizes import Sizes
from asr_jax.pretrained.weights import READABLE, Weights

Parameters = dict[str, Callable[[], np.ndarray]]
"""Functions that read and compute the parameters, by their names in asr_jax."""
Read = Callable[[str], np.ndarray]
Shapes = dict[str, tuple[int, ...]]

# PyTorch's default, which all of these models have.
BATCH_NORM_EPSILON = 1e-5
# Gates are in the same order in torch and here: input, forget, cell, output.
FORGET_GATE = 1
# Linear layers of a block: asr_jax's names and transformers'. The second may have a bias.
LINEAR = {
    "first_feedforward.expand": "feed_forward1.linear1",
    "first_feedforward.project": "feed_forward1.linear2",
    "second_feedforward.expand": "feed_forward2.linear1",
    "second_feedforward.project": "feed_forward2.linear2",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "convolution.gated": "conv.pointwise_conv1",
    "convolution.pointwise": "conv.pointwise_conv2",
}
WITHOUT_BIAS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.position": "self_attn.relative_k_proj",
}
NORMS = {
    "first_feedforward.norm": "norm_feed_forward1",
    "attention.norm": "norm_self_att",
    "convolution.norm": "norm_conv",
    "second_feedforward.norm": "norm_feed_forward2",
    "norm": "norm_out",
}


def require_readable(weights: Weights, sizes: Sizes) -> None:
    """Raise ValueError unless these are the tensors of a model of the sizes, in readable types."""
    required, optional = _subsampling_shapes(sizes), Shapes()
    for layer in range(sizes.layers):
        needed, allowed = _block_shapes(sizes, f"encoder.layers.{layer}.")
        required |= needed
        optional |= allowed
    required |= _head_shapes(sizes)
    expected = required | optional
    for name in [*required, *sorted(weights.keys() - required.keys())]:
        if name not in weights:
            raise ValueError(f"tensor {name} is missing")
        weight = weights[name]
        if name not in expected:
            raise ValueError(f"tensor {name} is not part of the models that can be imported")
        if weight.shape != expected[name]:
            raise ValueError(
                f"tensor {name} has shape {weight.shape}, must be {expected[name]} for this model"
            )
        if weight.dtype not in READABLE:
            raise ValueError(
                f"tensor {name} is {weight.dtype}: must be one of {', '.join(READABLE)}"
            )

    if not sizes.has_statistics:
        _require_foldable(weights, sizes)


def _require_foldable(weights: Weights, sizes: Sizes) -> None:
    """Raise ValueError for a bias before a LayerNorm, which nothing can take over."""
    for layer in range(sizes.layers):
        name = f"encoder.layers.{layer}.conv.depthwise_conv.bias"
        if name in weights and weights[name].values().any():
            raise ValueError(f"tensor {name}: before a layer_norm, it must be absent or zero")


def _subsampling_shapes(sizes: Sizes) -> Shapes:
    channels, name = sizes.channels, "encoder.subsampling."
    shapes: Shapes = {
        f"{name}linear.weight": (sizes.width, channels * sizes.bins),
        f"{name}linear.bias": (sizes.width,),
    }
    convolutions = {0: (1, 3, 3), 2: (1, 3, 3), 3: (channels, 1, 1)}
    if sizes.factor == 8:
        convolutions |= {5: (1, 3, 3), 6: (channels, 1, 1)}
    for number, shape in convolutions.items():
        shapes[f"{name}layers.{number}.weight"] = (channels, *shape)
        shapes[f"{name}layers.{number}.bias"] = (channels,)
    return shapes


def _block_shapes(sizes: Sizes, block: str) -> tuple[Shapes, Shapes]:
    """Return the shapes of a block's tensors, and of the biases that it may have."""
    width, inner = sizes.width, sizes.inner_width
    biases = (sizes.heads, width // sizes.heads)
    kernels: Shapes = {
        "feed_forward1.linear1": (inner, width),
        "feed_forward1.linear2": (width, inner),
        "feed_forward2.linear1": (inner, width),
        "feed_forward2.linear2": (width, inner),
        "conv.pointwise_conv1": (2 * width, width, 1),
        "conv.pointwise_conv2": (width, width, 1),
        "conv.depthwise_conv": (width, 1, sizes.kernel_frames),
        **{f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "o", "relative_k")},
    }
    required = {f"{block}{name}.weight": shape for name, shape in kernels.items()}
    required |= {f"{block}self_attn.bias_{name}": biases for name in ("u", "v")}
    for norm in (*NORMS.values(), "conv.norm"):
        required |= {f"{block}{norm}.{name}": (width,) for name in ("weight", "bias")}
    if sizes.has_statistics:
        statistics = ("running_mean", "running_var")
        required |= {f"{block}conv.norm.{name}": (width,) for name in statistics}
    # The scores by position have no bias.
    with_bias = kernels.keys() - {"self_attn.relative_k_proj"}
    return required, {f"{block}{name}.bias": kernels[name][:1] for name in with_bias}


def _head_shapes(sizes: Sizes) -> Shapes:
    shapes: Shapes = {}
    if sizes.has_ctc:
        shapes["ctc_head.weight"] = (sizes.vocabulary, sizes.width, 1)
        shapes["ctc_head.bias"] = (sizes.vocabulary,)
    if not sizes.lstm_layers:
        return shapes
    outputs = sizes.vocabulary + sizes.durations
    shapes["decoder.embedding.weight"] = (sizes.vocabulary, sizes.embedding_width)
    inputs, width = sizes.embedding_width, sizes.predictor_width
    for layer in range(sizes.lstm_layers):
        shapes[f"decoder.lstm.weight_ih_l{layer}"] = (4 * width, inputs)
        shapes[f"decoder.lstm.weight_hh_l{layer}"] = (4 * width, width)
        shapes[f"decoder.lstm.bias_ih_l{layer}"] = (4 * width,)
        shapes[f"decoder.lstm.bias_hh_l{layer}"] = (4 * width,)
        inputs = width
    for name, inputs in {
        "encoder_projector": sizes.width,
        "decoder.decoder_projector": sizes.predictor_width,
    }.items():
        shapes[f"{name}.weight"] = (sizes.joint_width, inputs)
        shapes[f"{name}.bias"] = (sizes.joint_width,)
    shapes["joint.head.weight"] = (outputs, sizes.joint_width)
    shapes["joint.head.bias"] = (outputs,)
    return shapes


def parameters(weights: Weights, sizes: Sizes, *, scale: float) -> Parameters:
    """Return the parameters of asr_jax, by their names.

    Args:
        weights: tensors that `require_readable` accepts.
        scale: factor of the encoder's input, sqrt(width) with scale_input and 1 without.
    """

    def read(name: str) -> np.ndarray:
        return weights[name].values()

    made = {
        **_subsampling(read, sizes, scale),
        **{f"encoder.blocks.{name}": value for name, value in _blocks(weights, sizes)},
    }
    if sizes.has_ctc:
        made["ctc_head.kernel"] = lambda: _blank_first(read("ctc_head.weight")[:, :, 0]).T
        made["ctc_head.bias"] = lambda: _blank_first(read("ctc_head.bias"))
    if sizes.lstm_layers:
        made |= _predictor(read, sizes) | _joint(read, sizes)
    return made


def _blank_first(labels: np.ndarray) -> np.ndarray:
    """Move the last of the labels, which lie along the first axis, to the front."""
    return np.roll(labels, 1, axis=0)


def _subsampling(read: Read, sizes: Sizes, scale: float) -> Parameters:
    layer = "encoder.subsampling.layers.{}.{}".format
    width, channels, bins = sizes.width, sizes.channels, sizes.bins

    def project() -> np.ndarray:
        kernel = read("encoder.subsampling.linear.weight").reshape(width, channels, bins)
        return scale * kernel.transpose(2, 1, 0).reshape(bins * channels, width)

    made: Parameters = {
        "first.kernel": lambda: read(layer(0, "weight")).transpose(2, 3, 1, 0),
        "first.bias": lambda: read(layer(0, "bias")),
        "project.kernel": project,
        "project.bias": lambda: scale * read("encoder.subsampling.linear.bias"),
    }
    for name, number in {"second": 2, **({"third": 5} if sizes.factor == 8 else {})}.items():
        made |= _separable(read, name, layer(number, "{}"), layer(number + 1, "{}"))
    return {f"encoder.subsampling.{name}": value for name, value in made.items()}


def _separable(read: Read, name: str, depthwise: str, pointwise: str) -> Parameters:
    """Return a separable convolution; the pointwise one takes over the other's bias."""

    def kernel() -> np.ndarray:
        return read(pointwise.format("weight"))[:, :, 0, 0].T

    return {
        f"{name}.depthwise": lambda: read(depthwise.format("weight"))[:, 0].transpose(1, 2, 0),
        f"{name}.pointwise.kernel": kernel,
        f"{name}.pointwise.bias": lambda: (
            read(depthwise.format("bias")) @ kernel() + read(pointwise.format("bias"))
        ),
    }


def _blocks(weights: Weights, sizes: Sizes) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yield the parameters of all blocks, stacked along their first axis."""

    def stacked(of_block: Callable[[Read], np.ndarray]) -> Callable[[], np.ndarray]:
        def compute() -> np.ndarray:
            first = of_block(_reader(weights, 0))
            values = np.empty((sizes.layers, *first.shape), np.float32)
            for layer in range(sizes.layers):
                values[layer] = of_block(_reader(weights, layer))
            return values

        return compute

    for ours, theirs in {**LINEAR, **WITHOUT_BIAS}.items():
        yield f"{ours}.kernel", stacked(lambda read, name=theirs: _kernel(read(f"{name}.weight")))
        if sizes.has_bias and ours in LINEAR:
            yield f"{ours}.bias", stacked(lambda read, name=theirs: read(f"{name}.bias"))
    for ours, theirs in NORMS.items():
        yield f"{ours}.scale", stacked(lambda read, name=theirs: read(f"{name}.weight"))
        yield f"{ours}.bias", stacked(lambda read, name=theirs: read(f"{name}.bias"))
    for ours, theirs in {"content_bias": "bias_u", "position_bias": "bias_v"}.items():
        yield f"attention.{ours}", stacked(lambda read, name=theirs: _query_bias(read, name))
    yield "convolution.depthwise", stacked(lambda read: read("conv.depthwise_conv.weight")[:, 0].T)
    norm = _batch_norm if sizes.has_statistics else _layer_norm
    yield "convolution.depthwise_norm.scale", stacked(lambda read: norm(read)[0])
    yield "convolution.depthwise_norm.bias", stacked(lambda read: norm(read)[1])


def _reader(weights: Weights, layer: int) -> Read:
    """Return a function that reads a tensor of a block; a bias that it lacks is zero."""

    def read(name: str) -> np.ndarray:
        full = f"encoder.layers.{layer}.{name}"
        if full not in weights and name.endswith(".bias"):
            outputs = weights[full.removesuffix("bias") + "weight"].shape[0]
            return np.zeros(outputs, np.float32)
        return weights[full].values()

    return read


def _kernel(weight: np.ndarray) -> np.ndarray:
    """Return torch's weight [out, in] or [out, in, 1] as a kernel [in, out]."""
    return weight.reshape(weight.shape[:2]).T


def _query_bias(read: Read, name: str) -> np.ndarray:
    """Add the query's bias, which scores by content and by position have in common.

    The key's bias adds the same to all scores of a query, and the softmax cancels it.
    """
    bias = read(f"self_attn.{name}")
    return bias + read("self_attn.q_proj.bias").reshape(bias.shape)


def _batch_norm(read: Read) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and bias of a BatchNorm with fixed statistics, after a convolution's bias."""
    variance = read("conv.norm.running_var").astype(np.float64)
    scale = read("conv.norm.weight") / np.sqrt(variance + BATCH_NORM_EPSILON)
    centered = read("conv.depthwise_conv.bias") - read("conv.norm.running_mean")
    return scale, read("conv.norm.bias") + scale * centered


def _layer_norm(read: Read) -> tuple[np.ndarray, np.ndarray]:
    return read("conv.norm.weight"), read("conv.norm.bias")


def _predictor(read: Read, sizes: Sizes) -> Parameters:
    """Return the embedding and the LSTM; its layers above the first are stacked."""
    first, *upper = (_lstm_layer(read, layer) for layer in range(sizes.lstm_layers))
    made: Parameters = {
        "predictor.embedding.embedding": lambda: _blank_first(read("decoder.embedding.weight")),
        **{f"predictor.{name}": value for name, value in first.items()},
    }
    for name in first if upper else ():
        made[f"predictor.upper.{name}"] = lambda name=name: np.stack([x[name]() for x in upper])
    return made


def _lstm_layer(read: Read, layer: int) -> Parameters:
    def bias() -> np.ndarray:
        gates = np.split(
            read(f"decoder.lstm.bias_ih_l{layer}") + read(f"decoder.lstm.bias_hh_l{layer}"), 4
        )
        gates[FORGET_GATE] -= 1  # the cell adds it
        return np.concatenate(gates)

    return {
        "input.kernel": lambda: read(f"decoder.lstm.weight_ih_l{layer}").T,
        "input.bias": bias,
        "recurrent.kernel": lambda: read(f"decoder.lstm.weight_hh_l{layer}").T,
    }


def _joint(read: Read, sizes: Sizes) -> Parameters:
    def out(name: str) -> np.ndarray:
        head = read(f"joint.head.{name}")
        labels, durations = head[: sizes.vocabulary], head[sizes.vocabulary :]
        return np.concatenate([_blank_first(labels), durations])

    return {
        "joint.encoder_projection.kernel": lambda: read("encoder_projector.weight").T,
        "joint.encoder_projection.bias": lambda: (
            read("encoder_projector.bias") + read("decoder.decoder_projector.bias")
        ),
        "joint.predictor_projection.kernel": lambda: read("decoder.decoder_projector.weight").T,
        "joint.out.kernel": lambda: out("weight").T,
        "joint.out.bias": lambda: out("bias"),
    }
