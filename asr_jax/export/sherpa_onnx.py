"""A transducer as the files that sherpa-onnx's recognizers read, in one of two layouts.

encoder.onnx   log-mel and its lengths to encoded frames, already projected for the joint
decoder.onnx   the predictor with its projection (sherpa-onnx calls it the decoder)
joiner.onnx    both projections to logits
tokens.txt     the labels
bpe.vocab      the labels with SentencePiece's scores, for hotwords

The layout, icefall_layout.py or nemo_layout.py, decides how sherpa-onnx computes the features and
searches.
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
    """A model that the files cannot hold; its text is one line."""


def layout(config: Config) -> Layout:
    """Return the layout that has the run's features.

    Raises LayoutError, with the reason, for a model that sherpa-onnx cannot run.
    """
    prefix = "--format sherpa-onnx: "
    if config.objective.kind not in ("transducer", "tdt") or config.decoding.head != "objective":
        raise LayoutError(
            f"{prefix}objective.kind = {config.objective.kind!r}, decoding.head = "
            f"{config.decoding.head!r}: only transducers and TDT are exported"
        )
    durations = config.objective.durations
    if config.objective.kind == "tdt" and durations != tuple(range(len(durations))):
        raise LayoutError(
            f"{prefix}objective.durations = {durations}: must be 0, 1, 2 and so on, because "
            "sherpa-onnx takes a duration's index for the duration"
        )
    nemo_only = [
        f"{name} = {value!r}"
        for name, value, icefall_value in (
            ("predictor.kind", config.predictor.kind, "stateless"),
            ("encoder.subsampling_factor", config.encoder.subsampling_factor, 4),
            ("objective.kind", config.objective.kind, "transducer"),
        )
        if value != icefall_value
    ]
    if not nemo_only and not _differences(config, icefall_layout.FEATURES):
        if config.decoding.chunk_ms and (reason := icefall_layout.cannot_stream(config)):
            raise LayoutError(f"{prefix}{reason}")
        return "icefall"
    if config.decoding.chunk_ms:
        raise LayoutError(
            f"{prefix}decoding.chunk_ms = {config.decoding.chunk_ms:g}: streams are exported in "
            "icefall's layout only, which needs Kaldi's features (the defaults), predictor.kind = "
            "'stateless', encoder.subsampling_factor = 4 and objective.kind = 'transducer'"
        )
    if not _differences(config, nemo_layout.FEATURES):
        return "nemo"
    if nemo_only:
        raise LayoutError(
            f"{prefix}{' and '.join(nemo_only)}: only NeMo's layout holds such a model, but "
            f"its features differ from the run's: {_differences(config, nemo_layout.FEATURES)}; "
            "icefall's layout, with Kaldi's features, needs predictor.kind = 'stateless', "
            "encoder.subsampling_factor = 4 and objective.kind = 'transducer'"
        )
    raise LayoutError(
        f"{prefix}sherpa-onnx's features differ from the run's: "
        f"{_differences(config, icefall_layout.FEATURES)}"
    )


def _differences(config: Config, features: FeaturesConfig) -> str:
    """Return the settings that must change; the graph itself normalizes the features."""
    return "; ".join(
        f"features.{name} = {value!r} must be {getattr(features, name)!r}"
        for name, value in vars(config.features).items()
        if name != "normalization" and value != getattr(features, name)
    )


def max_symbols_per_frame(config: Config) -> int:
    """Return the bound of the layout's greedy search."""
    if layout(config) == "icefall":
        return icefall_layout.MAX_SYMBOLS_PER_FRAME
    return nemo_layout.MAX_SYMBOLS_PER_FRAME[config.objective.kind]


def write(folder: Path, config: Config, params: Params, tokenizer: Tokenizer) -> None:
    """Write the files in float32, from parameters as NumPy."""
    module = {"icefall": icefall_layout, "nemo": nemo_layout}[layout(config)]
    module.write(folder, config, params, tokenizer.vocabulary_size)
    pieces = module.order(tokenizer.pieces)
    lines = [f"{piece} {label}\n" for label, piece in enumerate(pieces)]
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")
    lines = [f"{piece}\t{score:g}\n" for piece, score in zip(tokenizer.pieces, tokenizer.scores)]
    (folder / "bpe.vocab").write_text("".join(lines), encoding="utf-8")


def quantize(folder: Path) -> None:
    """Write PART.int8.onnx next to each PART.onnx: matrices in int8, with a scale for every output.

    Activations are quantized when the model runs (dynamic quantization of onnxruntime). The eight
    bits are unsigned: with signed values, x86 processors without VNNI add two products in 16 bits,
    which overflows, and a third of a TDT's transcripts changed.
    """
    from onnxruntime.quantization import (  # pyright: ignore[reportMissingImports]
        QuantType,
        quantize_dynamic,
    )

    for part in PARTS:
        # quantize_dynamic logs advice to run its optimizer first, which needs sympy.
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
