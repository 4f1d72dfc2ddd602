"""Which models the formats of transformers and NeMo can hold."""

from typing import Literal

from asr_jax.config import Config

Format = Literal["transformers", "nemo"]
_NORM_EPSILON = 1e-5
# What both libraries compute features with, and cannot change.
_FEATURES = {
    "layout": "nemo",
    "window": "hann",
    "mel_scale": "slaney",
    "low_hz": 0.0,
    "high_hz": 0.0,
    "remove_dc": False,
    "preemphasis": 0.97,
    "sample_rate_hz": 16_000,
    "window_ms": 25.0,
    "hop_ms": 10.0,
}
_ENCODER = {
    "kind": "conformer",
    "attention": "relative",
    "shared_layers": 1,
    "norm_epsilon": _NORM_EPSILON,
    "subsampling": "separable",
}


def require_expressible(config: Config, form: Format) -> None:
    """Raise ValueError, naming the first field, unless the format can hold the model."""
    _require(config, form, "encoder.subsampling_factor", 4, 8)
    for section, values in {"features": _FEATURES, "encoder": _ENCODER}.items():
        for name, value in values.items():
            _require(config, form, f"{section}.{name}", value)
    _require(config, form, "objective.kind", "transducer", "tdt", "ctc")
    streams = bool(config.encoder.chunk_ms)
    normalization = "none" if streams else "utterance"
    _require(config, form, "features.normalization", normalization)
    _require(config, form, "encoder.subsampling_padding", "causal" if streams else "centered")
    if form == "transformers":
        _require(config, form, "encoder.context_frames", ())
        # Its class of streams has a LayerNorm, the others a BatchNorm.
        _require(config, form, "encoder.convolution_norm", "layer" if streams else "affine")
        _require(config, form, "decoding.head", "objective")
        if streams:
            _require(config, form, "objective.kind", "transducer")
    if streams:
        _require_streams(config, form)
    if config.objective.kind != "ctc":
        _require_transducer(config, form)


def _require_streams(config: Config, form: Format) -> None:
    if config.encoder.left_context_frames is None:
        raise ValueError(
            f"encoder.left_context_frames = None: --format {form} needs the left context of "
            "streams in frames"
        )
    if 0 in config.encoder.chunk_ms:
        raise ValueError(
            f"encoder.chunk_ms = {config.encoder.chunk_ms}: --format {form} has no chunk size 0"
        )


def _require_transducer(config: Config, form: Format) -> None:
    _require(config, form, "predictor.kind", "lstm")
    _require(config, form, "predictor.embedding_width", config.predictor.width)
    if form == "transformers":
        _require(config, form, "joint.width", config.predictor.width)


def _require(config: Config, form: Format, field: str, *supported: object) -> None:
    section, name = field.split(".")
    value = getattr(getattr(config, section), name)
    if value not in supported:
        rule = " or ".join(map(repr, supported))
        raise ValueError(f"{field} = {value!r}: --format {form} needs {rule}")
