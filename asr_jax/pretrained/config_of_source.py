"""The config of an imported model, from the sizes of its weights and from what its source says."""

from typing import Literal, NamedTuple

from asr_jax.config import (
    Config,
    DecodingConfig,
    EncoderConfig,
    FeaturesConfig,
    JointConfig,
    ObjectiveConfig,
    PredictorConfig,
    TokenizerConfig,
)
from asr_jax.pretrained.sizes import Sizes
from asr_jax.text import Tokenizer

# What NeMo trains TDT with, and the most labels at a frame in NeMo and transformers.
SIGMA, MOST_SYMBOLS = 0.02, 10
# Defaults of NeMo and transformers.
DROPOUT, CTC_WEIGHT = 0.1, 0.3
# PyTorch's, which all of these models have.
_NORM_EPSILON = 1e-5


class Source(NamedTuple):
    """The facts that a model's config states and its weights do not."""

    features: FeaturesConfig
    kind: Literal["ctc", "transducer", "tdt"]
    scale_input: bool
    """True if the encoder's input is multiplied by sqrt(width)."""
    context: tuple[tuple[int, int], ...] = ()
    """Pairs of frames before and after its own that a frame attends to, the default pair first;
    empty: all frames."""
    is_chunked: bool = False
    """True if attention sees chunks of (after + 1) frames, and convolutions are causal."""
    activation: Literal["tanh", "relu"] = "relu"
    """Activation of the joint network."""
    durations: tuple[int, ...] = ()
    sigma: float = SIGMA
    ctc_weight: float = 0.0
    most_symbols: int = MOST_SYMBOLS
    encoder_dropout: float = DROPOUT
    predictor_dropout: float = 0.0


def config_of_source(source: Source, sizes: Sizes, tokenizer: Tokenizer) -> Config:
    """Return the config. Raises ValueError for sizes that this package cannot express."""
    if sizes.inner_width % sizes.width:
        raise ValueError(
            f"feed-forward modules are {sizes.inner_width} wide: must be a multiple of the "
            f"encoder's width, {sizes.width}"
        )
    _require_bins(source, sizes)
    return Config(
        features=source.features,
        tokenizer=_tokenizer(tokenizer),
        encoder=_encoder(source, sizes),
        predictor=_predictor(source, sizes),
        joint=JointConfig(
            width=sizes.joint_width or JointConfig.width, activation=source.activation
        ),
        objective=_objective(source, sizes),
        decoding=DecodingConfig(
            max_symbols_per_frame=source.most_symbols,
            window_seconds=0.0,
            chunk_ms=_chunks_ms(source, sizes)[0] if source.is_chunked else 0.0,
        ),
    )


def _require_bins(source: Source, sizes: Sizes) -> None:
    """Raise ValueError unless the mel bins are those that the weights of the subsampling read."""
    bins = source.features.mel_bins
    for _ in range({4: 2, 8: 3}[sizes.factor]):
        bins = bins // 2 + 1 if source.is_chunked else -(-bins // 2)
    if bins != sizes.bins:
        raise ValueError(
            f"{source.features.mel_bins} mel bins: subsampling leaves {bins} of them, and the "
            f"weights have {sizes.bins}"
        )


def _tokenizer(tokenizer: Tokenizer) -> TokenizerConfig:
    # A normalization without a name belongs to its tokenizer.model alone.
    normalization = tokenizer.normalization
    return TokenizerConfig(
        kind=tokenizer.kind,
        vocabulary_size=tokenizer.vocabulary_size,
        normalization="none" if normalization == "other" else normalization,
    )


def _encoder(source: Source, sizes: Sizes) -> EncoderConfig:
    is_limited = bool(source.context) and not source.is_chunked
    return EncoderConfig(
        layers=sizes.layers,
        width=sizes.width,
        heads=sizes.heads,
        feedforward_factor=sizes.inner_width // sizes.width,
        kernel_frames=sizes.kernel_frames,
        convolution_norm="affine" if sizes.has_statistics else "layer",
        norm_epsilon=_NORM_EPSILON,
        bias=sizes.has_bias,
        subsampling="separable",
        subsampling_factor=sizes.factor,
        subsampling_channels=sizes.channels,
        subsampling_padding="causal" if source.is_chunked else "centered",
        context_frames=source.context[0] if is_limited else (),
        chunk_ms=_chunks_ms(source, sizes) if source.is_chunked else (),
        left_context_frames=source.context[0][0] if source.is_chunked else None,
        dropout=source.encoder_dropout,
    )


def _chunks_ms(source: Source, sizes: Sizes) -> tuple[float, ...]:
    frame_ms = sizes.factor * source.features.hop_ms
    return tuple((after + 1) * frame_ms for _, after in source.context)


def _predictor(source: Source, sizes: Sizes) -> PredictorConfig:
    if not sizes.lstm_layers:
        return PredictorConfig()
    return PredictorConfig(
        kind="lstm",
        layers=sizes.lstm_layers,
        embedding_width=sizes.embedding_width,
        width=sizes.predictor_width,
        dropout=source.predictor_dropout,
    )


def _objective(source: Source, sizes: Sizes) -> ObjectiveConfig:
    if source.kind != "tdt":
        return ObjectiveConfig(kind=source.kind, ctc_weight=source.ctc_weight)
    return ObjectiveConfig(
        kind="tdt",
        ctc_weight=source.ctc_weight,
        durations=source.durations,
        sigma=source.sigma,
    )
