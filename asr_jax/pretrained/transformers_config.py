"""Facts about a model from transformers' config.json, and refusals of what cannot be imported."""

from typing import Literal

from asr_jax.config import FeaturesConfig
from asr_jax.pretrained.config_of_source import DROPOUT, MOST_SYMBOLS, Source
from asr_jax.pretrained.fields import Fields
from asr_jax.pretrained.sizes import Sizes

_STREAMING = "nemotron_asr_streaming"
_KINDS: dict[str, Literal["ctc", "transducer", "tdt"]] = {
    "parakeet_ctc": "ctc",
    "parakeet_rnnt": "transducer",
    "parakeet_tdt": "tdt",
    _STREAMING: "transducer",
}
# Fields that are checked, read from the weights, or without effect in recognition. The last line
# has those that transformers writes into any config.
_KNOWN = (
    "hidden_act subsampling_conv_kernel_size subsampling_conv_stride subsampling_factor "
    "scale_input "
    "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size "
    "conv_kernel_size subsampling_conv_channels attention_bias convolution_bias num_mel_bins "
    "sliding_window default_num_lookahead_tokens max_position_embeddings initializer_range "
    "activation_dropout attention_dropout dropout dropout_positions layerdrop "
    "model_type architectures dtype torch_dtype transformers_version return_dict use_cache"
)


def require_class(config: Fields) -> None:
    """Raise ValueError for a class of models that is not supported."""
    if config.stated("model_type") not in _KINDS:
        raise config.error("model_type", f"must be one of {', '.join(_KINDS)}")


def transformers_source(config: Fields, processor: Fields, sizes: Sizes) -> Source:
    """Return the facts of a model. Raises ValueError for one that is not supported.

    Args:
        config: the fields of config.json.
        processor: the fields of the feature extractor; none where it has no file.
        sizes: the sizes of the weights.
    """
    kind = _KINDS[str(config.stated("model_type"))]
    found = "tdt" if sizes.durations else "transducer" if sizes.lstm_layers else "ctc"
    if kind != found:
        raise config.error("model_type", "disagrees with the weights, which are of another class")
    is_streaming = config.stated("model_type") == _STREAMING
    _require_heads(config, sizes)
    encoder = config.part("encoder_config")
    _require_encoder(encoder, sizes)
    durations = config.integers("durations")
    if kind == "tdt" and durations and len(durations) != sizes.durations:
        raise config.error("durations", f"the weights have {sizes.durations} durations")
    return Source(
        features=_features(encoder, processor, is_streaming=is_streaming),
        kind=kind,
        scale_input=encoder.stated("scale_input") is not False,
        context=_context(encoder) if is_streaming else (),
        is_chunked=is_streaming,
        activation="tanh" if kind != "ctc" and config.stated("hidden_act") == "tanh" else "relu",
        durations=durations or tuple(range(sizes.durations)),
        most_symbols=config.integer("max_symbols_per_step", MOST_SYMBOLS),
        encoder_dropout=encoder.number("dropout", DROPOUT),
    )


def _require_heads(config: Fields, sizes: Sizes) -> None:
    config.require("quantization_config", None)
    config.require("vocab_size", sizes.vocabulary)
    blank = sizes.vocabulary - 1
    if sizes.lstm_layers:
        config.require("hidden_act", "relu", "tanh")
        config.require("blank_token_id", blank)
        config.require("decoder_hidden_size", sizes.predictor_width)
        config.require("num_decoder_layers", sizes.lstm_layers)
    else:
        config.require("pad_token_id", blank)


def _require_encoder(encoder: Fields, sizes: Sizes) -> None:
    encoder.require("hidden_act", "silu")
    encoder.require("subsampling_conv_kernel_size", 3)
    encoder.require("subsampling_conv_stride", 2)
    encoder.require("subsampling_factor", sizes.factor)
    encoder.require("scale_input", True, False)
    for name, size in {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "intermediate_size": sizes.inner_width,
        "conv_kernel_size": sizes.kernel_frames,
        "subsampling_conv_channels": sizes.channels,
    }.items():
        encoder.require(name, size)
    encoder.require("attention_bias", sizes.has_attention_bias)
    encoder.require("convolution_bias", sizes.has_convolution_bias)
    encoder.require_known(*_KNOWN.split())


def _context(encoder: Fields) -> tuple[tuple[int, int], ...]:
    """Return the frames before and after a frame in a chunk of the default size."""
    window = encoder.integer("sliding_window", 0)
    if not window:
        raise encoder.error("sliding_window", "must be a positive number of frames")
    return ((window - 1, encoder.integer("default_num_lookahead_tokens", 0)),)


def _features(encoder: Fields, processor: Fields, *, is_streaming: bool) -> FeaturesConfig:
    bins = encoder.integer("num_mel_bins", 80)
    for name, supported in {
        "feature_size": bins,
        "n_fft": 512,
        "win_length": 400,
        "hop_length": 160,
        "sampling_rate": 16_000,
        "preemphasis": 0.97,
        "padding_side": "right",
        "padding_value": 0.0,
    }.items():
        processor.require(name, supported)
    return FeaturesConfig(
        layout="nemo",
        window="hann",
        mel_bins=bins,
        mel_scale="slaney",
        low_hz=0.0,
        high_hz=0.0,
        remove_dc=False,
        normalization="none" if is_streaming else "utterance",
    )
