"""The layers of asr_jax.layers and models as nodes of an ONNX graph, a function for each.

Each takes the graph, the parameters of its namesake as NumPy, and values of the shapes that are
given in brackets: B utterances, T frames, D channels, H heads. Frames beyond an utterance's length
change none within, as in JAX.
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

Params = dict[str, PyTree[np.ndarray]]
# flax's, under the square root.
_NORM_EPSILON = 1e-6


def size(g: Graph, x: Value, axis: int) -> Value:
    """[1]: of an axis."""
    return g("Shape", x, start=axis, end=axis + 1)


def cut(g: Graph, x: Value, start: int, end: int | Value, axis: int) -> Value:
    """x[start:end] of an axis."""
    return g("Slice", x, np.array([start]), end if isinstance(end, Value) else [end], [axis])


def count(g: Graph, start: Value | int, end: Value, step: int = 1) -> Value:
    """[N] int64: start, start + step, ..., before end; of values of shape [1]."""
    first = g("Squeeze", start, [0]) if isinstance(start, Value) else np.array(start)
    return g("Range", first, g("Squeeze", end, [0]), np.array(step))


def frame_mask(g: Graph, lengths: Value, frames: Value) -> Value:
    """[B, T]: layers.length.frame_mask; `frames` is of shape [1]."""
    return g("Less", count(g, 0, frames), g("Unsqueeze", lengths, [1]))


def subsampled(g: Graph, lengths: Value, factor: int) -> Value:
    return g("Div", g("Add", lengths, np.array(factor - 1)), np.array(factor))


def normalized(g: Graph, x: Value, lengths: Value) -> Value:
    """[B, T, F]: features.normalization = "utterance", every bin over the real frames."""
    real = g("Unsqueeze", frame_mask(g, lengths, size(g, x, 1)), [2])
    frames = g("Cast", g("Max", g("Unsqueeze", lengths, [1, 2]), np.array(1)), to=1)

    def mean(x: Value) -> Value:
        return g("Div", g("ReduceSum", g("Where", real, x, 0.0), [1], keepdims=1), frames)

    centred = g("Sub", x, mean(x))
    deviation = g("Sqrt", g("Add", mean(g("Mul", centred, centred)), VARIANCE_FLOOR))
    return g("Div", centred, deviation)


def linear(g: Graph, p: Params, x: Value) -> Value:
    """layers.linear.Linear; or layers.residual.ResidualLinear, whose matrices stay apart so that
    what layers share is stored once."""
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


def layer_norm(g: Graph, p: Params, x: Value) -> Value:
    return g("LayerNormalization", x, p["scale"], p["bias"], epsilon=_NORM_EPSILON)


def silu(g: Graph, x: Value) -> Value:
    return g("Mul", x, g("Sigmoid", x))


def feedforward(g: Graph, p: Params, x: Value) -> Value:
    x = layer_norm(g, p["norm"], x)
    return linear(g, p["project"], silu(g, linear(g, p["expand"], x)))


class Past:
    """What a layer must know of the frames before a chunk of a stream, by name: [B, K, D] each."""

    def __init__(self, g: Graph, before: dict[str, Value], frames: dict[str, int]):
        self._g, self._before, self._frames = g, before, frames
        self.after: dict[str, Value] = {}
        """The same for the next chunk, of what was joined."""

    def with_past(self, name: str, x: Value) -> Value:
        """[B, K + C, D]: behind what was before."""
        x = self._g("Concat", self._before[name], x, axis=1)
        self.after[name] = cut(self._g, x, -self._frames[name], 2**31 - 1, 1)
        return x


def subsampling(
    g: Graph, config: Config, p: Params, x: Value, real: Callable[[int, Value], Value]
) -> Value:
    """[B, T, F] to [B, T2, D]; real(stride, frames) masks the frames [B, T] after a stride."""
    over_time_alone = config.encoder.subsampling == "conv1d"

    def masked(x: Value, stride: int, axis: int) -> Value:
        mask = real(stride, size(g, x, axis))
        around = {1: [2], 2: [1, 3] if not over_time_alone else [1]}[axis]
        return g("Where", g("Unsqueeze", mask, around), x, 0.0)

    x = masked(x, 1, 1)
    # To channels first: [B, F, T], or [B, 1, T, F].
    x = g("Transpose", x, perm=[0, 2, 1]) if over_time_alone else g("Unsqueeze", x, [1])
    for stride, name in zip((2, 4, 8), ("first", "second", "third")):
        if name in p:
            x = (_taps if over_time_alone else _convolution_2d)(g, p[name], x)
            x = masked(g("Relu", x), stride, 2)
    if over_time_alone:
        x = g("Transpose", x, perm=[0, 2, 1])
    else:
        x = g("Reshape", g("Transpose", x, perm=[0, 2, 3, 1]), [0, 0, -1])
    return linear(g, p["project"], x)


def _taps(g: Graph, p: Params, x: Value) -> Value:
    """A layer of layers.subsampling.Subsampling1D, of [B, C, T]."""
    inputs, outputs = p["kernel"].shape
    kernel = p["kernel"].reshape(3, inputs // 3, outputs).transpose(2, 1, 0)
    return g("Conv", x, kernel, p["bias"], strides=[2], pads=[1, 1])


def _convolution_2d(g: Graph, p: Params, x: Value) -> Value:
    """A layer of layers.subsampling.Subsampling2D, of [B, C, T, F]."""
    halving = {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    if "depthwise" not in p:
        return g("Conv", x, p["kernel"].transpose(3, 2, 0, 1), p["bias"], **halving)
    depthwise = p["depthwise"].transpose(2, 0, 1)[:, None]
    x = g("Conv", x, depthwise, group=len(depthwise), **halving)
    pointwise = p["pointwise"]
    return g("Conv", x, pointwise["kernel"].T[:, :, None, None], pointwise["bias"])


def convolution(
    g: Graph, config: Config, p: Params, x: Value, mask: Value | None, past: Past | None = None
) -> Value:
    """layers.convolution.ConvolutionModule; `mask` is of shape [B, T]. With a past: its `step`."""
    x = linear(g, p["gated"], layer_norm(g, p["norm"], x))
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
    x = layer_norm(g, p["depthwise_norm"], g("Transpose", x, perm=[0, 2, 1]))
    return linear(g, p["pointwise"], silu(g, x))


def visibility(g: Graph, config: Config, mask: Value, frames: Value) -> Value:
    """[B, 1, 1 or T, T]: added to scores, 0 where a frame sees another and -1e30 elsewhere."""
    seen = g("Unsqueeze", mask, [1, 2])
    chunk = chunk_frames(config.decoding.chunk_ms, config)
    left, right = config.encoder.left_chunks, 0
    if config.encoder.context_frames:
        chunk, (left, right) = 1, config.encoder.context_frames
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
    """[B, T, D] to [B, T, H, D / H]."""
    return g("Reshape", x, [0, 0, heads, -1])


def _attended(g: Graph, p: Params, scores: Value, hidden: Value, value: Value, width: int) -> Value:
    """From scores [B, H, T, T] and values [B, T, H, D / H]."""
    heads_first = functools.partial(g, "Transpose", perm=[0, 2, 1, 3])
    weights = g("Softmax", g("Add", g("Mul", scores, width**-0.5), hidden), axis=3)
    x = heads_first(g("MatMul", weights, heads_first(value)))
    return linear(g, p["out"], g("Reshape", x, [0, 0, -1]))


def _projected(
    g: Graph, config: Config, p: Params, x: Value, past: Past | None
) -> tuple[Value, Value, Value]:
    """Query, key and value, [B, T, H, D / H] each, the latter two with those of the past."""
    x = layer_norm(g, p["norm"], x)
    query, key, value = (linear(g, p[name], x) for name in ("query", "key", "value"))
    if past:
        key, value = past.with_past("key", key), past.with_past("value", value)
    split = functools.partial(_heads, g, config.encoder.heads)
    return split(query), split(key), split(value)


Tables = tuple[Value | np.ndarray, Value | np.ndarray]
# attend(p, x, past=None): an attention layer with all that its blocks share.
Attend = Callable[..., Value]


def rotary_tables(g: Graph, head_width: int, frames: Value) -> Tables:
    """[T, 1, D / H / 2] each: cosines and sines of layers.attention.rotate."""
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
    hidden: Value,
    past: Past | None = None,
) -> Value:
    """`tables` of the queries and of the keys."""
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
    return _attended(g, p, scores, hidden, value, width)


def relative_positions(g: Graph, width: int, frames: Value) -> Value:
    """[1, 2 T, D]: layers.attention.relative_positions."""
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
    hidden: Value,
    past: Past | None = None,
) -> Value:
    """`positions` of the distances of queries to keys, [1, Q + T, D]."""
    heads, width = config.encoder.heads, config.encoder.width // config.encoder.heads
    query, key, value = _projected(g, config, p, x, past)
    position = _heads(g, heads, linear(g, p["position"], positions))

    def products(bias: np.ndarray, others: Value) -> Value:
        return g(
            "MatMul",
            g("Transpose", g("Add", query, bias), perm=[0, 2, 1, 3]),
            g("Transpose", others, perm=[0, 2, 3, 1]),
        )

    by_content = products(p["content_bias"], key)
    by_distance = products(p["position_bias"], position)
    # layers.attention.shift_relative.
    queries = size(g, query, 1)
    skewed = g("Reshape", by_distance, g("Concat", [0, 0, -1], queries, axis=0))
    skewed = cut(g, skewed, 1, 2**31 - 1, 2)
    skewed = g("Reshape", skewed, g("Concat", [0, 0], queries, [-1], axis=0))
    scores = g("Add", by_content, cut(g, skewed, 0, size(g, key, 1), 3))
    return _attended(g, p, scores, hidden, value, width)


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
    x = g("Add", x, half(feedforward(g, p["first_feedforward"], x)))
    x = g("Add", x, attend(p["attention"], x, past=past))
    x = g("Add", x, convolution(g, config, p["convolution"], x, mask, past))
    x = g("Add", x, half(feedforward(g, p["second_feedforward"], x)))
    return layer_norm(g, p["norm"], x)


def transformer_block(
    g: Graph, config: Config, p: Params, x: Value, attend: Attend, mask: Value
) -> Value:
    x = g("Add", x, attend(p["attention"], x))
    return g("Add", x, feedforward(g, p["feedforward"], x))


def encoder(g: Graph, config: Config, p: Params, x: Value, lengths: Value) -> tuple[Value, Value]:
    """models.encoder.Encoder: [B, T, F], [B] to [B, T2, D], [B]."""
    sizes = config.encoder

    def real(stride: int, frames: Value) -> Value:
        return frame_mask(g, subsampled(g, lengths, stride), frames)

    x = subsampling(g, config, p["subsampling"], x, real)
    encoded_lengths = subsampled(g, lengths, sizes.subsampling_factor)
    frames = size(g, x, 1)
    mask = frame_mask(g, encoded_lengths, frames)
    hidden = visibility(g, config, mask, frames)
    if sizes.attention == "rotary":
        tables = rotary_tables(g, sizes.width // sizes.heads, frames)
        attend = functools.partial(rotary_attention, g, config, tables=(tables, tables))
    else:
        positions = relative_positions(g, sizes.width, frames)
        attend = functools.partial(relative_attention, g, config, positions=positions)
    attend = functools.partial(attend, hidden=hidden)
    block = {"conformer": conformer_block, "transformer": transformer_block}[sizes.kind]
    for layer in range(sizes.layers):
        x = block(g, config, layer_params(config, p["blocks"], layer), x, attend, mask)
    if "norm" in p:
        x = layer_norm(g, p["norm"], x)
    return g("Where", g("Unsqueeze", mask, [2]), x, 0.0), encoded_lengths


class Chunks(NamedTuple):
    """Sizes of a streaming encoder, in its own frames."""

    frames: int
    """Of a chunk."""
    cache_frames: int
    """Of the chunks before that attention sees."""
    tail: int
    """Before the chunk that convolutions see."""

    @classmethod
    def of(cls, config: Config) -> "Chunks":
        frames = chunk_frames(config.decoding.chunk_ms, config)
        left = config.encoder.left_chunks * frames
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
    """models.encoder.Encoder.step of Conformers, of whole chunks.

    From features [B, C factor, F], the frames seen [B], the last features [B, factor, F], and of
    each layer `key`, `value` [B, L, D] and `gated` [B, K - 1, D] of the frames before, to encoded
    frames [B, C, D], and the features and layers for the next chunk.
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
    number = np.arange(keys) - chunks.cache_frames
    is_real = g("GreaterOrEqual", number, g("Neg", g("Unsqueeze", seen, [1])))
    hidden = g("Where", g("Unsqueeze", is_real, [1, 2]), 0.0, -1e30)
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
    attend = functools.partial(attend, hidden=hidden)
    frames = {"key": chunks.cache_frames, "value": chunks.cache_frames, "gated": chunks.tail}
    after = []
    for layer in range(sizes.layers):
        past = Past(g, before[layer], frames)
        layer_p = layer_params(config, p["blocks"], layer)
        x = conformer_block(g, config, layer_p, x, attend, None, past)
        after.append(past.after)
    return x, tail, after


def layer_params(config: Config, blocks: Params, layer: int) -> Params:
    """Of one layer, from the stacked ones of all (layers.stack)."""

    def of_layer(stacked: np.ndarray) -> np.ndarray:
        # What layers share is there once for each group of them.
        return stacked[layer * len(stacked) // config.encoder.layers]

    return jax.tree.map(of_layer, blocks)


def stateless_predictor(g: Graph, p: Params, labels: Value) -> Value:
    """models.predictor.StatelessPredictor: [B, K] labels, -1 for none, to [B, D]."""
    embedded = g("Gather", p["embedding"]["embedding"], g("Max", labels, np.array(0)))
    some = g("Cast", g("GreaterOrEqual", labels, np.array(0)), to=1)
    embedded = g("Mul", embedded, g("Unsqueeze", some, [2]))
    return g("Relu", linear(g, p["convolution"], g("Reshape", embedded, [0, -1])))


def lstm_step(
    g: Graph, p: Params, labels: Value, hidden: Value, cell: Value
) -> tuple[Value, Value, Value]:
    """models.predictor.LSTMPredictor: [B] labels and state to output, which is the new hidden
    state, and the new state, [B, D] each."""
    embedded = g("Gather", p["embedding"]["embedding"], labels)
    gates = g("Add", linear(g, p["input"], embedded), linear(g, p["recurrent"], hidden))
    i, f, c, o = g.split("Split", 4, gates, axis=1)
    remembered = g("Mul", g("Sigmoid", g("Add", f, 1.0)), cell)
    cell = g("Add", remembered, g("Mul", g("Sigmoid", i), g("Tanh", c)))
    hidden = g("Mul", g("Sigmoid", o), g("Tanh", cell))
    return hidden, hidden, cell


def joint(g: Graph, config: Config, p: Params, encoded: Value, predicted: Value) -> Value:
    """models.joint.Joint: logits of projected frames and labels, [B, D] each."""
    operator = {"tanh": "Tanh", "relu": "Relu"}[config.joint.activation]
    return linear(g, p["out"], g(operator, g("Add", encoded, predicted)))
