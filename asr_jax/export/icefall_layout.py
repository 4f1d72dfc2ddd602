"""icefall's layout of sherpa-onnx: stateless transducers that subsample by 4, on Kaldi's log-mel.

decoder.onnx takes the last labels, -1 for none; blank is 0. The search is fixed there: at most one
label per frame of 40 ms, and `<unk>` counts as blank.
"""

from pathlib import Path
from typing import Any

import numpy as np

from asr_jax.config import Config, FeaturesConfig
from asr_jax.export import onnx_layers as layers
from asr_jax.export.onnx_graph import Graph

FEATURES = FeaturesConfig()
MAX_SYMBOLS_PER_FRAME = 1


def order(labels: list[str]) -> list[str]:
    """Of the labels: the model's."""
    return labels


def write(folder: Path, config: Config, params: Any, vocabulary: int) -> None:
    """Writes encoder.onnx, decoder.onnx and joiner.onnx, in float32, of parameters as NumPy."""
    width, joint = config.joint.width, params["joint"]

    g = Graph()
    x = g.input("x", np.float32, ("N", "T", config.features.mel_bins))
    lengths = g.input("x_lens", np.int64, ("N",))
    if config.features.normalization == "utterance":
        x = layers.normalized(g, x, lengths)
    encoded, lengths = layers.encoder(g, config, params["encoder"], x, lengths)
    encoded = layers.linear(g, joint["encoder_projection"], encoded)
    g.output("encoder_out", encoded, np.float32, ("N", "T2", width))
    g.output("encoder_out_lens", lengths, np.int64, ("N",))
    # What icefall calls its transducers; only when no --model-type is given is it looked at.
    g.save(folder / "encoder.onnx", {"model_type": "conformer", "comment": "asr_jax"})

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
