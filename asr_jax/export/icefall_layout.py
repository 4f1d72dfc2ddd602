"""icefall's layout of sherpa-onnx: stateless transducers that subsample by 4, on Kaldi's log-mel.

decoder.onnx takes the last labels, -1 for none; blank is 0. sherpa-onnx finds at most one label per
frame of 40 ms, and takes `<unk>` for blank. With decoding.chunk_ms the encoder takes a stream chunk
by chunk, for sherpa-onnx's online recognizer.
"""

from pathlib import Path

import numpy as np

from asr_jax.config import Config, FeaturesConfig
from asr_jax.export import onnx_layers as layers
from asr_jax.export.onnx_graph import Graph, Value

FEATURES = FeaturesConfig()
MAX_SYMBOLS_PER_FRAME = 1


def cannot_stream(config: Config) -> str:
    """Return why the layout cannot hold the config's streaming encoder; empty if it can."""
    if config.encoder.kind != "conformer":
        return f"encoder.kind = {config.encoder.kind!r}: must be 'conformer' for streams"
    if config.encoder.subsampling_lead:
        return (
            f"encoder.subsampling_padding = {config.encoder.subsampling_padding!r}: must be "
            "'centered' for streams"
        )
    if not layers.Chunks.of(config).cache_frames:
        if config.encoder.left_context_frames is None:
            return "encoder.left_chunks = 0: must be positive for streams"
        left = config.encoder.left_context_frames
        return f"encoder.left_context_frames = {left}: must hold a chunk of decoding.chunk_ms"
    return ""


def order(labels: list[str]) -> list[str]:
    """Return the labels in the layout's order, which is the model's."""
    return labels


def write(folder: Path, config: Config, params: layers.Params, vocabulary: int) -> None:
    """Write encoder.onnx, decoder.onnx and joiner.onnx in float32, from parameters as NumPy."""
    write_encoder = _write_streaming_encoder if config.decoding.chunk_ms else _write_encoder
    write_encoder(folder / "encoder.onnx", config, params)
    _write_decoder(folder / "decoder.onnx", config, params, vocabulary)
    _write_joiner(folder / "joiner.onnx", config, params, vocabulary)


def _write_decoder(path: Path, config: Config, params: layers.Params, vocabulary: int) -> None:
    context = config.predictor.context
    g = Graph()
    labels = g.input("y", np.int64, ("N", context))
    predicted = layers.stateless_predictor(g, params["predictor"], labels)
    predicted = layers.linear(g, params["joint"]["predictor_projection"], predicted)
    g.output("decoder_out", predicted, np.float32, ("N", config.joint.width))
    g.save(path, {"vocab_size": vocabulary, "context_size": context})


def _write_joiner(path: Path, config: Config, params: layers.Params, vocabulary: int) -> None:
    width = config.joint.width
    g = Graph()
    encoded = g.input("encoder_out", np.float32, ("N", width))
    predicted = g.input("decoder_out", np.float32, ("N", width))
    logits = layers.joint(g, config, params["joint"], encoded, predicted)
    g.output("logit", logits, np.float32, ("N", vocabulary))
    g.save(path, {"joiner_dim": width})


def _write_encoder(path: Path, config: Config, params: layers.Params) -> None:
    g = Graph()
    x = g.input("x", np.float32, ("N", "T", config.features.mel_bins))
    lengths = g.input("x_lens", np.int64, ("N",))
    if config.features.normalization == "utterance":
        x = layers.normalized(g, x, lengths)
    encoded, lengths = layers.encoder(g, config, params["encoder"], x, lengths)
    encoded = layers.linear(g, params["joint"]["encoder_projection"], encoded)
    g.output("encoder_out", encoded, np.float32, ("N", "T2", config.joint.width))
    g.output("encoder_out_lens", lengths, np.int64, ("N",))
    # icefall's name for its transducers, which sherpa-onnx reads only without --model-type.
    g.save(path, {"model_type": "conformer"})


def _write_streaming_encoder(path: Path, config: Config, params: layers.Params) -> None:
    """Write the encoder of one chunk, whose state is in the two caches that sherpa-onnx keeps."""
    sizes, chunks = config.encoder, layers.Chunks.of(config)
    factor, bins = sizes.subsampling_factor, config.features.mel_bins
    features = chunks.frames * factor
    g = Graph()
    x = g.input("x", np.float32, ("N", features, bins))
    shapes = _cache_shapes(config)
    caches = [g.input(f"cached_{name}", np.float32, shape) for name, shape in shapes.items()]
    processed = g.input("processed_lens", np.int64, ("N",))
    tail, before = _unpacked_caches(g, config, *caches)
    # processed_lens counts features.
    seen = g("Div", processed, np.array(factor))
    tail = g("Reshape", tail, [0, factor, bins])
    encoded, tail, after = layers.encoder_step(g, config, params["encoder"], x, seen, tail, before)
    encoded = layers.linear(g, params["joint"]["encoder_projection"], encoded)
    g.output("encoder_out", encoded, np.float32, ("N", chunks.frames, config.joint.width))
    for (name, shape), values in zip(shapes.items(), _packed_caches(g, config, tail, after)):
        g.output(f"new_cached_{name}", _stacked(g, values), np.float32, shape)
    about = {
        "model_type": "conformer",
        "num_encoder_layers": sizes.layers + 1,
        "T": features,
        "decode_chunk_len": features,
        "left_context": 2 * chunks.cache_frames,
        "encoder_dim": sizes.width,
        "pad_length": 0,
        "cnn_module_kernel": _cache_rows(config) + 1,
        "right_context": 0,
        "chunk_size": chunks.frames,
    }
    g.save(path, about)


def _cache_rows(config: Config) -> int:
    """Return the rows of a layer of cached_conv: the frames of a convolution or last features."""
    return max(layers.Chunks.of(config).tail, -(-_last_features(config) // config.encoder.width))


def _last_features(config: Config) -> int:
    """Return the size of the features that are cached before a chunk."""
    return config.encoder.subsampling_factor * config.features.mel_bins


def _cache_shapes(config: Config) -> dict[str, tuple[int | str, ...]]:
    """Return the shapes of both caches, whose layers are one more than the encoder's.

    attn [layers + 1, 2 L, N, D] holds each layer's keys, then its values. conv
    [layers + 1, rows, N, D] holds the frames that each layer's convolution sees; its additional
    layer holds the last features, flattened.
    """
    cache_layers, width = config.encoder.layers + 1, config.encoder.width
    return {
        "attn": (cache_layers, 2 * layers.Chunks.of(config).cache_frames, "N", width),
        "conv": (cache_layers, _cache_rows(config), "N", width),
    }


def _unpacked_caches(
    g: Graph, config: Config, attention: Value, convolution: Value
) -> tuple[Value, list[dict[str, Value]]]:
    """Return the last features, flattened, and every layer's cache as in `layers.encoder_step`."""
    rows, frames = _cache_rows(config), layers.Chunks.of(config).tail
    attention, convolution = (
        g("Transpose", cache, perm=[0, 2, 1, 3]) for cache in (attention, convolution)
    )

    def of_layer(cache: Value, layer: int) -> Value:
        return g("Squeeze", layers.cut(g, cache, layer, layer + 1, 0), [0])

    tail = g("Reshape", of_layer(convolution, config.encoder.layers), [0, -1])
    tail = layers.cut(g, tail, 0, _last_features(config), 1)
    caches = []
    for layer in range(config.encoder.layers):
        key, value = g.split("Split", 2, of_layer(attention, layer), axis=1)
        gated = layers.cut(g, of_layer(convolution, layer), rows - frames, rows, 1)
        caches.append({"key": key, "value": value, "gated": gated})
    return tail, caches


def _packed_caches(
    g: Graph, config: Config, tail: Value, caches: list[dict[str, Value]]
) -> tuple[list[Value], list[Value]]:
    """Return both caches, layer by layer: the inverse of `_unpacked_caches`."""
    rows, width = _cache_rows(config), config.encoder.width
    attention = [g("Concat", cache["key"], cache["value"], axis=1) for cache in caches]
    # The additional layer of this cache may hold anything.
    attention.append(attention[0])
    padding = [0, rows - layers.Chunks.of(config).tail, 0, 0, 0, 0]
    convolution = [g("Pad", cache["gated"], padding) for cache in caches]
    padding = [0, 0, 0, rows * width - _last_features(config)]
    tail = g("Pad", g("Reshape", tail, [0, -1]), padding)
    convolution.append(g("Reshape", tail, [0, rows, width]))
    return attention, convolution


def _stacked(g: Graph, values: list[Value]) -> Value:
    """Return [layers, K, N, D] from every layer's [N, K, D]."""
    stacked = g("Concat", *(g("Unsqueeze", value, [0]) for value in values), axis=0)
    return g("Transpose", stacked, perm=[0, 2, 1, 3])
