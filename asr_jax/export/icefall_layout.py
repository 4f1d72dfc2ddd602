"""icefall's layout of sherpa-onnx: stateless transducers that subsample by 4, on Kaldi's log-mel.

decoder.onnx takes the last labels, -1 for none; blank is 0. The search is fixed there: at most one
label per frame of 40 ms, and `<unk>` counts as blank. With decoding.chunk_ms the encoder is one of
chunks of a stream, for sherpa-onnx's online recogniser.
"""

from pathlib import Path
from typing import Any

import numpy as np

from asr_jax.config import Config, FeaturesConfig
from asr_jax.export import onnx_layers as layers
from asr_jax.export.onnx_graph import Graph, Value

FEATURES = FeaturesConfig()
MAX_SYMBOLS_PER_FRAME = 1


def cannot_stream(config: Config) -> str:
    """Why the layout has no streaming encoder of the config's kind; empty where it has."""
    if config.encoder.kind != "conformer":
        return f"encoder.kind = {config.encoder.kind!r}: of streams it must be 'conformer'"
    if not config.encoder.left_chunks:
        return "encoder.left_chunks = 0: of streams it must be positive"
    return ""


def order(labels: list[str]) -> list[str]:
    """Of the labels: the model's."""
    return labels


def write(folder: Path, config: Config, params: Any, vocabulary: int) -> None:
    """Writes encoder.onnx, decoder.onnx and joiner.onnx, in float32, of parameters as NumPy."""
    width, joint = config.joint.width, params["joint"]

    if config.decoding.chunk_ms:
        _write_streaming_encoder(folder / "encoder.onnx", config, params)
    else:
        _write_encoder(folder / "encoder.onnx", config, params)

    context = config.predictor.context
    g = Graph()
    labels = g.input("y", np.int64, ("N", context))
    predicted = layers.stateless_predictor(g, params["predictor"], labels)
    predicted = layers.linear(g, joint["predictor_projection"], predicted)
    g.output("decoder_out", predicted, np.float32, ("N", width))
    g.save(folder / "decoder.onnx", {"vocab_size": vocabulary, "context_size": context})

    g = Graph()
    encoded = g.input("encoder_out", np.float32, ("N", width))
    predicted = g.input("decoder_out", np.float32, ("N", width))
    logits = layers.joint(g, config, joint, encoded, predicted)
    g.output("logit", logits, np.float32, ("N", vocabulary))
    g.save(folder / "joiner.onnx", {"joiner_dim": width})


def _write_encoder(path: Path, config: Config, params: Any) -> None:
    g = Graph()
    x = g.input("x", np.float32, ("N", "T", config.features.mel_bins))
    lengths = g.input("x_lens", np.int64, ("N",))
    if config.features.normalization == "utterance":
        x = layers.normalized(g, x, lengths)
    encoded, lengths = layers.encoder(g, config, params["encoder"], x, lengths)
    encoded = layers.linear(g, params["joint"]["encoder_projection"], encoded)
    g.output("encoder_out", encoded, np.float32, ("N", "T2", config.joint.width))
    g.output("encoder_out_lens", lengths, np.int64, ("N",))
    # What icefall calls its transducers; only when no --model-type is given is it looked at.
    g.save(path, {"model_type": "conformer"})


def _write_streaming_encoder(path: Path, config: Config, params: Any) -> None:
    """A chunk's encoder, whose state is in the two arrays of caches that sherpa-onnx keeps.

    cached_attn [layers, 2 L, N, D]: keys, then values. cached_conv [layers + 1, K - 1, N, D]: what
    convolutions see; of the layer that is too many, the last features, one number after the other.
    """
    sizes, chunks = config.encoder, layers.Chunks.of(config)
    factor, bins = sizes.subsampling_factor, config.features.mel_bins
    last = factor * bins
    rows = max(chunks.tail, -(-last // sizes.width))
    features = chunks.frames * factor

    g = Graph()
    x = g.input("x", np.float32, ("N", features, bins))
    kept = g.input(
        "cached_attn", np.float32, (sizes.layers + 1, 2 * chunks.cache_frames, "N", sizes.width)
    )
    tails = g.input("cached_conv", np.float32, (sizes.layers + 1, rows, "N", sizes.width))
    processed = g.input("processed_lens", np.int64, ("N",))
    kept, tails = (g("Transpose", cache, perm=[0, 2, 1, 3]) for cache in (kept, tails))

    def of_layer(cache: Value, layer: int) -> Value:
        return g("Squeeze", layers.cut(g, cache, layer, layer + 1, 0), [0])

    tail = layers.cut(g, g("Reshape", of_layer(tails, sizes.layers), [0, -1]), 0, last, 1)
    before = []
    for layer in range(sizes.layers):
        key, value = g.split("Split", 2, of_layer(kept, layer), axis=1)
        gated = layers.cut(g, of_layer(tails, layer), rows - chunks.tail, rows, 1)
        before.append({"key": key, "value": value, "gated": gated})
    # Counted in features there.
    seen = g("Div", processed, np.array(factor))
    encoded, tail, after = layers.encoder_step(
        g, config, params["encoder"], x, seen, g("Reshape", tail, [0, factor, bins]), before
    )
    encoded = layers.linear(g, params["joint"]["encoder_projection"], encoded)
    g.output("encoder_out", encoded, np.float32, ("N", chunks.frames, config.joint.width))

    def all_layers(values: list[Value]) -> Value:
        return g(
            "Transpose",
            g("Concat", *(g("Unsqueeze", v, [0]) for v in values), axis=0),
            perm=[0, 2, 1, 3],
        )

    kept = [g("Concat", state["key"], state["value"], axis=1) for state in after]
    # Of the layer that is too many, anything.
    kept.append(kept[0])
    filled = [0, rows - chunks.tail, 0, 0, 0, 0]
    tails = [g("Pad", state["gated"], filled) for state in after]
    tail = g("Pad", g("Reshape", tail, [0, -1]), [0, 0, 0, rows * sizes.width - last])
    tails.append(g("Reshape", tail, [0, rows, sizes.width]))
    for name, values, frames in (
        ("new_cached_attn", kept, 2 * chunks.cache_frames),
        ("new_cached_conv", tails, rows),
    ):
        shape = (sizes.layers + 1, frames, "N", sizes.width)
        g.output(name, all_layers(values), np.float32, shape)
    about = {
        "model_type": "conformer",
        "num_encoder_layers": sizes.layers + 1,
        "T": features,
        "decode_chunk_len": features,
        "left_context": 2 * chunks.cache_frames,
        "encoder_dim": sizes.width,
        "pad_length": 0,
        "cnn_module_kernel": rows + 1,
        "right_context": 0,
        "chunk_size": chunks.frames,
    }
    g.save(path, about)
