"""A stateless transducer as the files that sherpa-onnx's offline recogniser reads.

encoder.onnx: Kaldi's log-mel and its lengths to encoded frames, already projected for the joint.
decoder.onnx: the last labels, -1 for none, to the predictor's projection (their word for it).
joiner.onnx: both projections to logits. tokens.txt: the labels, blank being 0.
bpe.vocab: the same with SentencePiece's scores, for hotwords.

The search is fixed there: at most one label per frame, and `<unk>` counts as blank.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from asr_jax.config import Config, FeaturesConfig
from asr_jax.export import onnx_layers as layers
from asr_jax.export.onnx_graph import Graph
from asr_jax.text import Tokenizer

PARTS = ("encoder", "decoder", "joiner")
MAX_SYMBOLS_PER_FRAME = 1
# Kaldi's, which the defaults are. The mean and deviation of the utterance are the graph's business.
FEATURES = FeaturesConfig()


class LayoutError(ValueError):
    """A model that the files cannot hold; one line."""


def check(config: Config) -> None:
    """Raises LayoutError where sherpa-onnx could not run the model, naming what and why."""
    beginning = "--format sherpa-onnx: "
    if config.objective.kind != "transducer" or config.decoding.head != "objective":
        raise LayoutError(
            f"{beginning}objective.kind = {config.objective.kind!r}, decoding.head = "
            f"{config.decoding.head!r}: only transducers are exported"
        )
    if config.predictor.kind != "stateless":
        raise LayoutError(
            f"{beginning}predictor.kind = {config.predictor.kind!r}: it must be 'stateless', whose "
            "state is its last labels"
        )
    if config.encoder.subsampling_factor != 4:
        raise LayoutError(
            f"{beginning}encoder.subsampling_factor = {config.encoder.subsampling_factor}: it must "
            "be 4, as sherpa-onnx counts times and emits one label per frame at most"
        )
    differ = [
        f"features.{name} = {value!r} must be {getattr(FEATURES, name)!r}"
        for name, value in vars(config.features).items()
        if name != "normalization" and value != getattr(FEATURES, name)
    ]
    if differ:
        raise LayoutError(
            f"{beginning}sherpa-onnx computes other features than the run's: {'; '.join(differ)}"
        )


def write(folder: Path, config: Config, params: Any, tokenizer: Tokenizer) -> None:
    """Writes the files, in float32.

    Args:
        params: of the model, as NumPy.
    """
    vocabulary, width = tokenizer.vocabulary_size, config.joint.width
    joint = params["joint"]

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

    pieces = tokenizer.pieces
    lines = [f"{piece} {label}\n" for label, piece in enumerate(pieces)]
    (folder / "tokens.txt").write_text("".join(lines))
    lines = [f"{piece}\t{score:g}\n" for piece, score in zip(pieces, tokenizer.scores)]
    (folder / "bpe.vocab").write_text("".join(lines))


def quantize(folder: Path) -> None:
    """Writes PART.int8.onnx beside each PART.onnx: matrices in int8, a scale for every output.

    What they are multiplied with is quantized as it comes (dynamic quantisation of onnxruntime).
    """
    from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports]
        QuantType,
        quantize_dynamic,
    )

    for part in PARTS:
        # It advises on the root logger to run its optimizer first, which needs sympy.
        logging.disable(logging.WARNING)
        try:
            quantize_dynamic(
                folder / f"{part}.onnx",
                folder / f"{part}.int8.onnx",
                op_types_to_quantize=["MatMul", "Gather"],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
