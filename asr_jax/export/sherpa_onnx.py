"""A transducer as the files that sherpa-onnx's recognisers read, in one of two layouts.

encoder.onnx: log-mel and its lengths to encoded frames, already projected for the joint.
decoder.onnx: the predictor, and its projection (their word for it). joiner.onnx: both projections
to logits. tokens.txt: the labels. bpe.vocab: the same with SentencePiece's scores, for hotwords.

sherpa-onnx computes the features, and searches, by the layout: icefall_layout.py, nemo_layout.py.
"""

import logging
from pathlib import Path
from typing import Literal

from asr_jax.config import Config, FeaturesConfig
from asr_jax.export import icefall_layout, nemo_layout
from asr_jax.export.onnx_layers import Params
from asr_jax.text import Tokenizer

PARTS = ("encoder", "decoder", "joiner")

Layout = Literal["icefall", "nemo"]


class LayoutError(ValueError):
    """A model that the files cannot hold; one line."""


def layout(config: Config) -> Layout:
    """The layout whose features are the run's.

    Raises LayoutError where sherpa-onnx could not run the model, naming what and why.
    """
    beginning = "--format sherpa-onnx: "
    if config.objective.kind not in ("transducer", "tdt") or config.decoding.head != "objective":
        raise LayoutError(
            f"{beginning}objective.kind = {config.objective.kind!r}, decoding.head = "
            f"{config.decoding.head!r}: only transducers and TDT are exported"
        )
    durations = config.objective.durations
    if config.objective.kind == "tdt" and durations != tuple(range(len(durations))):
        raise LayoutError(
            f"{beginning}objective.durations = {durations}: there a duration is its place in the "
            "list, so that they must be 0, 1, 2 and so on"
        )
    of_nemo_alone = [
        f"{name} = {value!r}"
        for name, value, other in (
            ("predictor.kind", config.predictor.kind, "stateless"),
            ("encoder.subsampling_factor", config.encoder.subsampling_factor, 4),
            ("objective.kind", config.objective.kind, "transducer"),
        )
        if value != other
    ]
    if not of_nemo_alone and not _differences(config, icefall_layout.FEATURES):
        if config.decoding.chunk_ms and (reason := icefall_layout.cannot_stream(config)):
            raise LayoutError(f"{beginning}{reason}")
        return "icefall"
    if config.decoding.chunk_ms:
        raise LayoutError(
            f"{beginning}decoding.chunk_ms = {config.decoding.chunk_ms:g}: streams are exported in "
            "icefall's layout alone, of Kaldi's features (the defaults), predictor.kind = "
            "'stateless', encoder.subsampling_factor = 4 and objective.kind = 'transducer'"
        )
    if not _differences(config, nemo_layout.FEATURES):
        return "nemo"
    if of_nemo_alone:
        raise LayoutError(
            f"{beginning}{' and '.join(of_nemo_alone)}: only NeMo's layout holds that, for which "
            "sherpa-onnx computes other features than the run's: "
            f"{_differences(config, nemo_layout.FEATURES)}; the icefall layout, with Kaldi's "
            "features, needs predictor.kind = 'stateless', encoder.subsampling_factor = 4 and "
            "objective.kind = 'transducer'"
        )
    raise LayoutError(
        f"{beginning}sherpa-onnx computes other features than the run's: "
        f"{_differences(config, icefall_layout.FEATURES)}"
    )


def _differences(config: Config, features: FeaturesConfig) -> str:
    """What the run's features would have to be; their mean and deviation are the graph's work."""
    return "; ".join(
        f"features.{name} = {value!r} must be {getattr(features, name)!r}"
        for name, value in vars(config.features).items()
        if name != "normalization" and value != getattr(features, name)
    )


def max_symbols_per_frame(config: Config) -> int:
    """The bound of the layout's greedy search."""
    if layout(config) == "icefall":
        return icefall_layout.MAX_SYMBOLS_PER_FRAME
    return nemo_layout.MAX_SYMBOLS_PER_FRAME[config.objective.kind]


def write(folder: Path, config: Config, params: Params, tokenizer: Tokenizer) -> None:
    """Writes the files, in float32.

    Args:
        params: of the model, as NumPy.
    """
    of_layout = {"icefall": icefall_layout, "nemo": nemo_layout}[layout(config)]
    of_layout.write(folder, config, params, tokenizer.vocabulary_size)
    pieces = of_layout.order(tokenizer.pieces)
    lines = [f"{piece} {label}\n" for label, piece in enumerate(pieces)]
    (folder / "tokens.txt").write_text("".join(lines))
    lines = [f"{piece}\t{score:g}\n" for piece, score in zip(tokenizer.pieces, tokenizer.scores)]
    (folder / "bpe.vocab").write_text("".join(lines))


def quantize(folder: Path) -> None:
    """Writes PART.int8.onnx beside each PART.onnx: matrices in int8, a scale for every output.

    What they are multiplied with is quantized as it comes (dynamic quantisation of onnxruntime).
    Eight bits without a sign: of signed ones x86 processors without VNNI add two products in 16
    bits, which is not enough, and of a TDT a third of the transcripts changed there.
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
                weight_type=QuantType.QUInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
