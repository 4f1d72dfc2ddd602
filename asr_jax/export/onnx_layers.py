"""The layers of asr_jax.layers and models as nodes of an ONNX graph, one function per layer.

A function takes the graph, the layer's parameters as NumPy arrays, and values. Shapes are given in
brackets: B utterances, T frames, D channels, H heads. Padding frames change no real frame.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from asr_jax.config import Config, chunk_frames
from asr_jax.export.onnx_graph import Graph, Value
from asr_jax.features.logmel import VARIANCE_FLOOR
from asr_jax.layers import attention
from asr_jax.models.encoder import left_chunks

Params = dict[str, PyTree[np.ndarray]]


def size(g: Graph, x: Value, axis: int) -> Value:
    """Return the size of an axis, [1]."""
    return g("Shape", x, start=axis, end=axis + 1)


def cut(g: Graph, x: Value, start: int, end: int | Value, axis: int) -> Value:
    """Return x[start:end] along an axis."""
    return g("Slice", x, np.array([start]), end if isinstance(end, Value) else [end], [axis])


def count(g: Graph, start: Value | int, end: Value, step: int = 1) -> Value:
    """Return start, start + step, ..., below end, [N] int64; values have shape [1]."""
    first = g("Squeeze", start, [0]) if isinstance(start, Value) else np.array(start)
    return g("Range", first, g("Squeeze", end, [0]), np.array(step))


def frame_mask(g: Graph, lengths: Value, frames: Value) -> Value:
    """Return layers.length.frame_mask, [B, T]; `frames` has shape [1]."""
    return g("Less", count(g, 0, frames), g("Unsqueeze", lengths, [1]))


def subsampled(g: Graph, lengths: Value, factor: int) -> Value:
    """Return lengths divided by a factor, rounded up."""
    return g("Div", g("Add", lengths, np.array(factor - 1)), np.array(factor))


def normalized(g: Graph, x: Value, lengths: Value) -> Value:
    """Normalize every bin over the real frames, [B, T, F]: features.normalization = "utterance"."""
    real = g("Unsqueeze", frame_mask(g, lengths, size(g, x, 1)), [2])
    frames = g("Cast", g("Max", g("Unsqueeze", lengths, [1, 2]), np.array(1)), to=1)

    def mean(x: Value) -> Value:
        return g("Div", g("ReduceSum", g("Where", real, x, 0.0), [1], keepdims=1), frames)

    centered = g("Sub", x, mean(x))
    deviation = g("Sqrt", g("Add", mean(g("Mul", centered, centered)), VARIANCE_FLOOR))
    return g("Div", centered, deviation)


def linear(g: Graph, p: Params, x: Value) -> Value:
    """Apply layers.linear.Linear, or layers.residual.ResidualLinear, whose shared matrices are
    stored once."""
    y = g("MatMul", x, p["kernel"])
    if "down" in p:
        y = g("Add", y, g("MatMul", g("MatMul", x, p["down"]), p["up"]))
    if "diagonal" in p:
        y = g("Add", y, _diagonal(g, p["diagonal"], p["kernel"].shape, x))
    return g("Add", y, p["bias"]) if "bias" in p else y


def _diagonal(g: Graph, diagonal: np.ndarray, shape: tuple[int, int], x: Value) -> Value:
    inputs, outputs = shape
    if inputs > len(diagonal):
        x = cut(g, x, 0, len(diagonal), 2)
    y = g("Mul", x, diagonal)
    return g("Pad", y, [0] * 5 + [outputs - len(diagonal)]) if outputs > len(diagonal) else y


def layer_norm(g: Graph, config: Config, p: Params, x: Value) -> Value:
    epsilon = config.encoder.norm_epsilon
    return g("LayerNormalization", x, p["scale"], p["bias"], epsilon=epsilon)


def depthwise_norm(g: Graph, config: Config, p: Params, x: Value) -> Value:
    """Apply the norm that encoder.convolution_norm names."""
    if config.encoder.convolution_norm == "layer":
        return layer_norm(g, config, p, x)
    return g("Add", g("Mul", x, p["scale"]), p["bias"])


def silu(g: Graph, x: Value) -> Value:
    return g("Mul", x, g("Sigmoid", x))


def feedforward(g: Graph, config: Config, p: Params, x: Value) -> Value:
    x = layer_norm(g, config, p["norm"], x)
    return linear(g, p["project"], silu(g, linear(g, p["expand"], x)))


class Past:
    """A layer's cache of the frames before a chunk of a stream: values [B, K, D] by name."""

    def __init__(self, g: Graph, before: dict[str, Value], frames: dict[str, int]):
        self._g, self._before, self._frames = g, before, frames
        self.after: dict[str, Value] = {}
        """Cache for the next chunk."""

    def with_past(self, name: str, x: Value) -> Value:
        """Return `x` after the cached frames, [B, K + C, D], and cache the last ones."""
        x = self._g("Concat", self._before[name], x, axis=1)
        self.after[name] = cut(self._g, x, -self._frames[name], 2**31 - 1, 1)
        return x


def subsampling(
    g: Graph, config: Config, p: Params, x: Value, real: Callable[[int, Value], Value]
) -> Value:
    """Return [B, T2, D] from [B, T, F]; real(stride, frames) masks the frames after a stride."""
    is_1d = config.encoder.subsampling == "conv1d"

    def masked(x: Value, stride: int, axis: int) -> Value:
        mask = real(stride, size(g, x, axis))
        other_axes = {1: [2], 2: [1] if is_1d else [1, 3]}[axis]
        return g("Where", g("Unsqueeze", mask, other_axes), x, 0.0)

    x = masked(x, 1, 1)
    # Channels come first: [B, F, T], or [B, 1, T, F].
    x = g("Transpose", x, perm=[0, 2, 1]) if is_1d else g("Unsqueeze", x, [1])
    for stride, name in zip((2, 4, 8), ("first", "second", "third")):
        if name in p:
            x = _taps(g, p[name], x) if is_1d else _convolution_2d(g, config, p[name], x)
            x = masked(g("Relu", x), stride, 2)
    if is_1d:
        x = g("Transpose", x, perm=[0, 2, 1])
    else:
        x = g("Reshape", g("Transpose", x, perm=[0, 2, 3, 1]), [0, 0, -1])
    return linear(g, p["project"], x)


def _taps(g: Graph, p: Params, x: Value) -> Value:
    """Apply a layer of layers.subsampling.Subsampling1D to [B, C, T]."""
    inputs, outputs = p["kernel"].shape
    kernel = p["kernel"].reshape(3, inputs // 3, outputs).transpose(2, 1, 0)
    return g("Conv", x, kernel, p["bias"], strides=[2], pads=[1, 1])


def _convolution_2d(g: Graph, config: Config, p: Params, x: Value) -> Value:
    """Apply a layer of layers.subsampling.Subsampling2D to [B, C, T, F]."""
    bins_before = 2 if config.encoder.subsampling_padding == "causal" else 1
    halving = {"strides": [2, 2], "pads": [1, bins_before, 1, 1]}
    if "depthwise" not in p:
        return g("Conv", x, p["kernel"].transpose(3, 2, 0, 1), p["bias"], **halving)
    depthwise = p["depthwise"].transpose(2, 0, 1)[:, None]
    x = g("Conv", x, depthwise, group=len(depthwise), **halving)
    pointwise = p["pointwise"]
    return g("Conv", x, pointwise["kernel"].T[:, :, None, None], pointwise["bias"])


def convolution(
    g: Graph, config: Config, p: Params, x: Value, mask: Value | None, past: Past | None = None
) -> Value:
    """Apply layers.convolution.ConvolutionModule with a mask [B, T]; with `past`, its `step`."""
    x = linear(g, p["gated"], layer_norm(g, config, p["norm"], x))
    value, gate = g.split("Split", 2, x, axis=2)
    x = g("Mul", value, g("Sigmoid", gate))
    x = x if mask is None else g("Where", g("Unsqueeze", mask, [2]), x, 0.0)
    taps, width = p["depthwise"].shape
    before = taps - 1 if config.encoder.chunk_ms else taps // 2
    after = taps - 1 - before
    if past:
        x, before = past.with_past("gated", x), 0
    x = g(
        "Conv",
        g("Transpose", x, perm=[0, 2, 1]),
        p["depthwise"].T[:, None],
        group=width,
        pads=[before, after],
    )
    x = depthwise_norm(g, config, p["depthwise_norm"], g("Transpose", x, perm=[0, 2, 1]))
    return linear(g, p["pointwise"], silu(g, x))


def visibility(g: Graph, config: Config, mask: Value, frames: Value) -> Value:
    """Return a bias of scores, [B, 1, 1 or T, T]: 0 where a frame sees another, -1e30 elsewhere."""
    seen = g("Unsqueeze", mask, [1, 2])
    chunk = chunk_frames(config.decoding.chunk_ms, config)
    left = right = 0
    if config.encoder.context_frames:
        chunk, (left, right) = 1, config.encoder.context_frames
    elif chunk:
        left = left_chunks(config.encoder, chunk)
    if chunk:
        chunks = g("Div", count(g, 0, frames), np.array(chunk))
        ahead = g("Sub", g("Unsqueeze", chunks, [1]), g("Unsqueeze", chunks, [0]))
        near = g(
            "And",
            g("LessOrEqual", ahead, np.array(left)),
            g("GreaterOrEqual", ahead, np.array(-right)),
        )
        seen = g("And", seen, near)
    return g("Where", seen, 0.0, -1e30)


def _heads(g: Graph, heads: int, x: Value) -> Value:
    """Return [B, T, H, D / H] from [B, T, D]."""
    return g("Reshape", x, [0, 0, heads, -1])


def _attended(
    g: Graph, p: Params, scores: Value, score_bias: Value, value: Value, width: int
) -> Value:
    """Return attention's output from scores [B, H, T, T] and values [B, T, H, D / H]."""
    heads_first = functools.partial(g, "Transpose", perm=[0, 2, 1, 3])
    weights = g("Softmax", g("Add", g("Mul", scores, width**-0.5), score_bias), axis=3)
    x = heads_first(g("MatMul", weights, heads_first(value)))
    return linear(g, p["out"], g("Reshape", x, [0, 0, -1]))


def _projected(
    g: Graph, config: Config, p: Params, x: Value, past: Past | None
) -> tuple[Value, Value, Value]:
    """Return query, key and value, [B, T, H, D / H] each; key and value include the past."""
    x = layer_norm(g, config, p["norm"], x)
    query, key, value = (linear(g, p[name], x) for name in ("query", "key", "value"))
    if past:
        key, value = past.with_past("key", key), past.with_past("value", value)
    split = functools.partial(_heads, g, config.encoder.heads)
    return split(query), split(key), split(value)


Tables = tuple[Value | np.ndarray, Value | np.ndarray]
# attend(p, x, past=None) applies attention with what all blocks share already given.
Attend = Callable[..., Value]


def rotary_tables(g: Graph, head_width: int, frames: Value) -> Tables:
    """Return cosines and sines of layers.attention.rotate, [T, 1, D / H / 2] each."""
    times = g("Cast", count(g, 0, frames), to=1)
    angles = g("Mul", g("Unsqueeze", times, [1, 2]), _rotary_rates(head_width))
    return g("Cos", angles), g("Sin", angles)


def _rotary_rates(head_width: int) -> np.ndarray:
    half = head_width // 2
    return np.float32(10_000.0) ** (-np.arange(half, dtype=np.float32) / half)


def rotary_attention(
    g: Graph,
    config: Config,
    p: Params,
    x: Value,
    tables: tuple[Tables, Tables],
    score_bias: Value,
    past: Past | None = None,
) -> Value:
    """Apply rotary attention; `tables` are those of the queries and those of the keys."""
    width = config.encoder.width // config.encoder.heads

    def rotated(x: Value, tables: Tables) -> Value:
        cos, sin = tables
        first, second = g.split("Split", 2, x, axis=3)
        return g(
            "Concat",
            g("Sub", g("Mul", first, cos), g("Mul", second, sin)),
            g("Add", g("Mul", first, sin), g("Mul", second, cos)),
            axis=3,
        )

    query, key, value = _projected(g, config, p, x, past)
    scores = g(
        "MatMul",
        g("Transpose", rotated(query, tables[0]), perm=[0, 2, 1, 3]),
        g("Transpose", rotated(key, tables[1]), perm=[0, 2, 3, 1]),
    )
    return _attended(g, p, scores, score_bias, value, width)


def relative_positions(g: Graph, width: int, frames: Value) -> Value:
    """Return layers.attention.relative_positions, [1, 2 T, D]."""
    rates = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-np.log(10_000.0) / width))
    distances = g("Cast", count(g, frames, g("Neg", frames), -1), to=1)
    angles = g("Mul", g("Unsqueeze", distances, [1]), rates)
    pairs = g("Concat", *(g("Unsqueeze", g(turn, angles), [2]) for turn in ("Sin", "Cos")), axis=2)
    return g("Unsqueeze", cut(g, g("Reshape", pairs, [0, -1]), 0, width, 1), [0])


def relative_attention(
    g: Graph,
    config: Config,
    p: Params,
    x: Value,
    positions: Value,
    score_bias: Value,
    past: Past | None = None,
) -> Value:
    """Apply attention with relative positions: encodings of the distances, [1, Q + T, D]."""
    heads, width = config.encoder.heads, config.encoder.width // config.encoder.heads
    query, key, value = _projected(g, config, p, x, past)
    position = _heads(g, heads, linear(g, p["position"], positions))

    def products(bias: np.ndarray, keys: Value) -> Value:
        return g(
            "MatMul",
            g("Transpose", g("Add", query, bias), perm=[0, 2, 1, 3]),
            g("Transpose", keys, perm=[0, 2, 3, 1]),
        )

    by_content = products(p["content_bias"], key)
    by_distance = products(p["position_bias"], position)
    # layers.attention.shift_relative.
    queries = size(g, query, 1)
    skewed = g("Reshape", by_distance, g("Concat", [0, 0, -1], queries, axis=0))
    skewed = cut(g, skewed, 1, 2**31 - 1, 2)
    skewed = g("Reshape", skewed, g("Concat", [0, 0], queries, [-1], axis=0))
    scores = g("Add", by_content, cut(g, skewed, 0, size(g, key, 1), 3))
    return _attended(g, p, scores, score_bias, value, width)


def conformer_block(
    g: Graph,
    config: Config,
    p: Params,
    x: Value,
    attend: Attend,
    mask: Value | None,
    past: Past | None = None,
) -> Value:
    half = lambda y: g("Mul", y, 0.5)
    x = g("Add", x, half(feedforward(g, config, p["first_feedforward"], x)))
    x = g("Add", x, attend(p["attention"], x, past=past))
    x = g("Add", x, convolution(g, config, p["convolution"], x, mask, past))
    x = g("Add", x, half(feedforward(g, config, p["second_feedforward"], x)))
    return layer_norm(g, config, p["norm"], x)


def transformer_block(
    g: Graph, config: Config, p: Params, x: Value, attend: Attend, mask: Value
) -> Value:
    x = g("Add", x, attend(p["attention"], x))
    return g("Add", x, feedforward(g, config, p["feedforward"], x))


def encoder(g: Graph, config: Config, p: Params, x: Value, lengths: Value) -> tuple[Value, Value]:
    """Apply models.encoder.Encoder: [B, T, F], [B] to [B, T2, D], [B].

    Recordings shorter than half a hop have no frame, but onnxruntime's convolutions need one.
    """
    sizes, lead = config.encoder, config.encoder.subsampling_lead
    missing = g("Max", g("Sub", [1], size(g, x, 1)), [0])
    x = g("Pad", x, g("Concat", [0, lead, 0, 0], missing, [0], axis=0))
    if lead:
        lengths = g("Add", lengths, g("Mul", g("Min", lengths, np.array(1)), np.array(lead)))

    def real(stride: int, frames: Value) -> Value:
        mask = frame_mask(g, subsampled(g, lengths, stride), frames)
        if not lead:
            return mask
        return g("And", mask, g("GreaterOrEqual", count(g, 0, frames), np.array(lead // stride)))

    x = subsampling(g, config, p["subsampling"], x, real)
    encoded_lengths = subsampled(g, lengths, sizes.subsampling_factor)
    frames = size(g, x, 1)
    mask = frame_mask(g, encoded_lengths, frames)
    score_bias = visibility(g, config, mask, frames)
    if sizes.attention == "rotary":
        tables = rotary_tables(g, sizes.width // sizes.heads, frames)
        attend = functools.partial(rotary_attention, g, config, tables=(tables, tables))
    else:
        positions = relative_positions(g, sizes.width, frames)
        attend = functools.partial(relative_attention, g, config, positions=positions)
    attend = functools.partial(attend, score_bias=score_bias)
    block = {"conformer": conformer_block, "transformer": transformer_block}[sizes.kind]
    for layer in range(sizes.layers):
        x = block(g, config, layer_params(config, p["blocks"], layer), x, attend, mask)
    if "norm" in p:
        x = layer_norm(g, config, p["norm"], x)
    return g("Where", g("Unsqueeze", mask, [2]), x, 0.0), encoded_lengths


class Chunks(NamedTuple):
    """Sizes of a streaming encoder, in encoded frames."""

    frames: int
    """Frames of a chunk."""
    cache_frames: int
    """Frames before the chunk that attention sees."""
    tail: int
    """Frames before the chunk that convolutions see."""

    @classmethod
    def of(cls, config: Config) -> "Chunks":
        frames = chunk_frames(config.decoding.chunk_ms, config)
        left = int(left_chunks(config.encoder, frames)) * frames
        return cls(frames, left, config.encoder.kernel_frames - 1)


def encoder_step(
    g: Graph,
    config: Config,
    p: Params,
    x: Value,
    seen: Value,
    tail: Value,
    before: Sequence[dict[str, Value]],
) -> tuple[Value, Value, list[dict[str, Value]]]:
    """Apply models.encoder.Encoder.step of a Conformer to a full chunk.

    Args:
        x: features [B, C factor, F].
        seen: encoded frames before the chunk [B].
        tail: last features before the chunk [B, factor, F].
        before: cache of each layer: `key`, `value` [B, L, D] and `gated` [B, K - 1, D].

    Returns:
        Encoded frames [B, C, D], and `tail` and `before` for the next chunk.
    """
    sizes, chunks = config.encoder, Chunks.of(config)
    factor = sizes.subsampling_factor
    x = g("Concat", tail, x, axis=1)
    tail = cut(g, x, -factor, 2**31 - 1, 1)
    begins = g("Cast", g("Equal", seen, np.array(0)), to=7)

    def real(stride: int, frames: Value) -> Value:
        starts = g("Mul", begins, np.array(factor // stride))
        return g("Not", frame_mask(g, starts, frames))

    x = cut(g, subsampling(g, config, p["subsampling"], x, real), 1, 2**31 - 1, 1)
    keys = chunks.cache_frames + chunks.frames
    offsets = np.arange(keys) - chunks.cache_frames
    is_real = g("GreaterOrEqual", offsets, g("Neg", g("Unsqueeze", seen, [1])))
    score_bias = g("Where", g("Unsqueeze", is_real, [1, 2]), 0.0, -1e30)
    if sizes.attention == "rotary":
        rates = _rotary_rates(sizes.width // sizes.heads)
        angles = (np.arange(keys, dtype=np.float32)[:, None] * rates)[:, None]
        cos, sin = np.cos(angles), np.sin(angles)
        tables = (cos[chunks.cache_frames :], sin[chunks.cache_frames :]), (cos, sin)
        attend = functools.partial(rotary_attention, g, config, tables=tables)
    else:
        positions = np.asarray(attention.relative_positions(keys, sizes.width))[None]
        positions = g("Identity", positions[:, : chunks.frames + keys])
        attend = functools.partial(relative_attention, g, config, positions=positions)
    attend = functools.partial(attend, score_bias=score_bias)
    frames = {"key": chunks.cache_frames, "value": chunks.cache_frames, "gated": chunks.tail}
    after = []
    for layer in range(sizes.layers):
        past = Past(g, before[layer], frames)
        layer_p = layer_params(config, p["blocks"], layer)
        x = conformer_block(g, config, layer_p, x, attend, None, past)
        after.append(past.after)
    return x, tail, after


def layer_params(config: Config, blocks: Params, layer: int) -> Params:
    """Return the parameters of one layer from those of all layers, stacked (layers.stack)."""

    def of_layer(stacked: np.ndarray) -> np.ndarray:
        # A shared matrix is stacked once per group of layers.
        return stacked[layer * len(stacked) // config.encoder.layers]

    return jax.tree.map(of_layer, blocks)


def stateless_predictor(g: Graph, p: Params, labels: Value) -> Value:
    """Apply models.predictor.StatelessPredictor to labels [B, K], -1 for none; returns [B, D]."""
    embedded = g("Gather", p["embedding"]["embedding"], g("Max", labels, np.array(0)))
    is_label = g("Cast", g("GreaterOrEqual", labels, np.array(0)), to=1)
    embedded = g("Mul", embedded, g("Unsqueeze", is_label, [2]))
    return g("Relu", linear(g, p["convolution"], g("Reshape", embedded, [0, -1])))


def lstm_step(
    g: Graph, p: Params, labels: Value, hidden: Value, cell: Value
) -> tuple[Value, Value, Value]:
    """Apply models.predictor.LSTMPredictor to labels [B] and a state, [L, B, D] each; return the
    output [B, D], which is the last layer's new hidden state, and the new state."""
    x, layers = g("Gather", p["embedding"]["embedding"], labels), [p]
    if "upper" in p:
        number = len(p["upper"]["recurrent"]["kernel"])
        layers += [jax.tree.map(lambda a: a[n], p["upper"]) for n in range(number)]
    hiddens, cells = [], []
    for n, layer in enumerate(layers):
        before = (g("Gather", state, np.array(n), axis=0) for state in (hidden, cell))
        x, after = _lstm_cell(g, layer, x, *before)
        hiddens.append(x)
        cells.append(after)
    return x, _stacked(g, hiddens), _stacked(g, cells)


def _lstm_cell(g: Graph, p: Params, x: Value, hidden: Value, cell: Value) -> tuple[Value, Value]:
    gates = g("Add", linear(g, p["input"], x), linear(g, p["recurrent"], hidden))
    i, f, c, o = g.split("Split", 4, gates, axis=1)
    remembered = g("Mul", g("Sigmoid", g("Add", f, 1.0)), cell)
    cell = g("Add", remembered, g("Mul", g("Sigmoid", i), g("Tanh", c)))
    return g("Mul", g("Sigmoid", o), g("Tanh", cell)), cell


def _stacked(g: Graph, values: Sequence[Value]) -> Value:
    """Return [N, ...] from N values."""
    return g("Concat", *(g("Unsqueeze", value, [0]) for value in values), axis=0)


def joint(g: Graph, config: Config, p: Params, encoded: Value, predicted: Value) -> Value:
    """Apply models.joint.Joint to projected frames and labels, [B, D] each; return the logits."""
    operator = {"tanh": "Tanh", "relu": "Relu"}[config.joint.activation]
    return linear(g, p["out"], g(operator, g("Add", encoded, predicted)))
