"""Every setting of an experiment: frozen dataclasses with units, the only schema.

A file in configs/ ends in `config = Config(...)`. The command line overrides any field
(`--optimizer.peak-learning-rate 1e-3`). The resolved values are saved in the run directory as flat
JSON (`"encoder.layers": 12`), which `asr-jax train` reads as well.

The docstring of a field is its help text, which keeps the line breaks.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Literal, NamedTuple, get_args, get_origin


class Rule(NamedTuple):
    """A condition on a field's number or numbers, stated in its annotation."""

    holds: Callable[..., bool]
    text: str


POSITIVE = Rule(lambda x: x > 0, "must be positive")
POSITIVE_AND_FINITE = Rule(lambda x: 0 < x < math.inf, "must be positive and finite")
ODD = Rule(lambda x: x > 0 and x % 2 == 1, "must be positive and odd")
NOT_NEGATIVE = Rule(lambda x: x >= 0, "must not be negative")
NOT_NEGATIVE_AND_FINITE = Rule(lambda x: 0 <= x < math.inf, "must be finite, >= 0")
FRACTION = Rule(lambda x: 0 <= x <= 1, "must lie in 0..1")
BELOW_ONE = Rule(lambda x: 0 <= x < 1, "must lie in 0..1, below 1")
POSITIVE_FRACTION = Rule(lambda x: 0 < x <= 1, "must lie in 0..1, above 0")
CTC_SHARE = Rule(
    lambda x: 0 <= x < 1, "must lie in 0..1, below 1; for CTC alone use decoding.head = 'ctc'"
)
WINDOW = Rule(lambda x: x == 0 or x >= 6, "must be at least 6, or 0")
# Dropout rounds to 1/256, and must leave something.
DROPOUT = Rule(lambda x: 0 <= x <= 0.99, "must lie in 0..0.99")
DECIBELS = Rule(
    lambda *pair: len(pair) == 2 and -100 <= pair[0] <= pair[1] <= 100,
    "needs -100 <= lowest <= highest <= 100",
)
TEMPO = Rule(
    lambda *pair: len(pair) == 2 and 0 < pair[0] <= pair[1] < math.inf,
    "needs 0 < lowest <= highest, finite",
)
SPEEDS = Rule(
    lambda *speeds: bool(speeds) and all(0.1 <= x <= 10 for x in speeds),
    "needs at least one factor, all in 0.1..10",
)
BUCKET_EDGES = Rule(
    lambda *edges: _increase(0, *edges, math.inf),
    "must be positive and increasing, and finite",
)
CONTEXT = Rule(
    lambda *frames: len(frames) in (0, 2) and all(n >= 0 for n in frames),
    "needs two numbers that are not negative, frames before and after; or none",
)
CHUNKS = Rule(lambda *sizes: not sizes or any(sizes), "needs a size other than 0, or no sizes")
DURATIONS = Rule(
    lambda *frames: frames[:2] == (0, 1) and _increase(*frames),
    "must begin with 0 and 1, so that any labels fit any frames, and increase",
)


def _increase(*numbers: int | float) -> bool:
    return all(a < b for a, b in itertools.pairwise(numbers))


def _invalid(name: str, value: object, rule: str) -> ValueError:
    return ValueError(f"{name} = {value!r}: {rule}")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of Config, checked when it is made: `EncoderConfig` is the section `encoder`."""

    def __post_init__(self) -> None:
        """Check every field by the rules in its annotation."""
        for declared in fields(self):
            if get_origin(declared.type) is Annotated:
                for rule in get_args(declared.type)[1:]:
                    self._check(declared.name, rule)

    def _check(self, field: str, rule: Rule) -> None:
        value = getattr(self, field)
        numbers = value if isinstance(value, list | tuple) else (value,)
        # load_config reports a value that is of another type.
        if all(isinstance(x, int | float) for x in numbers) and not rule.holds(*numbers):
            raise self._invalid(field, rule.text)

    def _invalid(self, field: str, rule: str) -> ValueError:
        section = type(self).__name__.removesuffix("Config").lower()
        return _invalid(f"{section}.{field}", getattr(self, field), rule)


@dataclass(frozen=True, kw_only=True)
class DataConfig(Section):
    """Datasets, and the size of their batches."""

    train: str = ""
    """Training dataset: a folder, manifest, table, Kaldi directory or tar shards (docs/data.md).
    For a language model it may also be a text file."""
    more_train: tuple[str, ...] = ()
    """Further training datasets. Their utterance ids get their position as a prefix: 1:ID, 2:ID."""
    train_weights: tuple[float, ...] = ()
    """Times that an epoch reads data.train and each of data.more_train; empty: once each."""
    dev: str = ""
    """Dataset on which the best checkpoint is chosen; empty: data.held_out_fraction."""
    held_out_fraction: Annotated[float, BELOW_ONE] = 0.0
    """Without data.dev, the fraction of the training data, up to an hour, that is held out for it:
    whole speakers, or recordings where speakers are few or unknown. 0: no checkpoint is chosen."""
    test: str = ""
    """Dataset that is evaluated once, after training; empty: none."""
    min_seconds: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.1
    """Shorter training recordings are left out, counted and listed."""
    max_seconds: Annotated[float, POSITIVE_AND_FINITE] = 30.0
    """Longer training recordings are left out, counted and listed."""
    min_confidence: Annotated[float, Rule(lambda p: 0 <= p <= 1, "must be in 0..1")] = 0.0
    """Training recordings with a lower `confidence` in their manifest are left out, counted and
    listed. Those without a confidence, whose texts people wrote, are kept."""
    batch_seconds: Annotated[float, POSITIVE_AND_FINITE] = 120.0
    """Audio of a batch in seconds, padding included, over all devices together.
    For a language model, a label counts as 0.1 s."""
    buckets: Annotated[int, NOT_NEGATIVE] = 0
    """Number of shapes to which batches are padded; 0: 1 to 8, by recordings and train.steps."""
    bucket_seconds: Annotated[tuple[float, ...], BUCKET_EDGES] = ()
    """Longest utterance of each bucket, in seconds after speed and tempo changes; increasing.
    Empty: the shapes follow from the recordings. Given, they replace the three fields above."""
    bucket_labels: tuple[int, ...] = ()
    """Maximum number of labels of an utterance in each bucket of data.bucket_seconds."""
    bucket_utterances: tuple[int, ...] = ()
    """Utterances in a batch of each bucket of data.bucket_seconds, over all devices together."""
    read_threads: Annotated[int, POSITIVE] = 2
    """Threads that decode recordings and pad batches ahead of the step."""
    read_ahead_batches: Annotated[int, POSITIVE] = 8
    """Batches that are kept ready."""
    cache_gib: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 4.0
    """Memory for decoded audio, so that each recording is decoded once; 0: no cache."""

    def __post_init__(self) -> None:
        super().__post_init__()
        buckets = len(self.bucket_seconds)
        for name in ("bucket_labels", "bucket_utterances"):
            values = getattr(self, name)
            if len(values) != buckets or any(n <= 0 for n in values):
                rule = f"needs one positive value for each of the {buckets} data.bucket_seconds"
                alone = "needs data.bucket_seconds; data.batch_seconds alone sizes all batches"
                raise self._invalid(name, rule if buckets else alone)
        if self.buckets and buckets:
            raise self._invalid("buckets", "must be 0 where data.bucket_seconds gives the buckets")
        corpora = 1 + len(self.more_train)
        weights = self.train_weights
        if len(weights) not in (0, corpora) or not all(0 < x < math.inf for x in weights):
            raise self._invalid(
                "train_weights",
                f"needs a positive value for data.train and each of data.more_train, {corpora} in "
                "all",
            )
        if not all(self.more_train) or len({self.train, *self.more_train}) != corpora:
            raise self._invalid(
                "more_train",
                "needs corpora that differ from each other and from data.train; to repeat one, use "
                "data.train_weights",
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section):
    """Random changes of the training recordings."""

    speeds: Annotated[tuple[float, ...], SPEEDS] = (0.9, 1.0, 1.1)
    """Speed perturbation (tempo and pitch): one factor is drawn per utterance and epoch."""
    tempo_range: Annotated[tuple[float, float], TEMPO] = (1.0, 1.0)
    """Range of the tempo factor, log-uniform, with the pitch kept; above 1 is faster."""
    join_probability: Annotated[float, FRACTION] = 0.0
    """Fraction of utterances that are followed by another one of the same speaker."""
    impulse_responses: str = ""
    """Folder of room impulse responses, convolved with utterances; empty: none."""
    impulse_response_probability: Annotated[float, FRACTION] = 0.5
    """Fraction of utterances that are convolved with an impulse response."""
    noise: str = ""
    """Folder of recordings without transcripts, such as MUSAN's noise; empty: none is added."""
    noise_probability: Annotated[float, FRACTION] = 0.5
    """Fraction of utterances to which a segment of noise is added."""
    noise_snr_db: Annotated[tuple[float, float], DECIBELS] = (5.0, 20.0)
    """Range of the signal-to-noise ratio in dB, uniform.
    The signal is the utterance after convolution with an impulse response."""
    gain_db: Annotated[tuple[float, float], DECIBELS] = (0.0, 0.0)
    """Range of the change of level in dB, uniform, applied last and without clipping.
    It has no effect on normalized features (features.normalization)."""
    frequency_masks: Annotated[int, NOT_NEGATIVE] = 2
    """SpecAugment (arXiv 1904.08779): number of masks along mel bins."""
    frequency_mask_bins: Annotated[int, NOT_NEGATIVE] = 27
    """Width of the widest frequency mask."""
    time_masks: Annotated[int, NOT_NEGATIVE] = 10
    """Number of masks along time."""
    time_mask_fraction: Annotated[float, FRACTION] = 0.05
    """Width of the widest time mask, as a fraction of the utterance."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Section):
    """Log-mel filterbank. The defaults are Kaldi's, with dither 0 and snip_edges false."""

    layout: Literal["kaldi", "nemo"] = "kaldi"
    """Placement of frames: Kaldi's, or that of NeMo and librosa, as in Parakeet.
    nemo: centers at multiples of the hop, zeros beyond the ends, pre-emphasis over the recording,
    2^-24 added to the energies, and the deviation of n - 1 frames."""
    sample_rate_hz: Annotated[int, POSITIVE] = 16_000
    """Sample rate; recordings at other rates are resampled to it."""
    window_ms: float = 25.0
    """Length of a frame."""
    hop_ms: Annotated[float, POSITIVE] = 10.0
    """Time from one frame to the next."""
    window: Literal["povey", "hann", "hamming"] = "povey"
    """Window function."""
    mel_bins: Annotated[int, POSITIVE] = 80
    """Number of mel filters."""
    mel_scale: Literal["kaldi", "slaney"] = "kaldi"
    """kaldi: 1127 ln(1 + f / 700), triangles of height 1.
    slaney: librosa's scale, triangles of area 1."""
    low_hz: float = 20.0
    """Lower edge of the first filter."""
    high_hz: float = -400.0
    """Upper edge of the last filter; zero or negative: relative to half the sample rate."""
    preemphasis: Annotated[float, FRACTION] = 0.97
    """Pre-emphasis within each frame, or with layout nemo over the recording; 0: none."""
    remove_dc: bool = True
    """Subtract each frame's mean first."""
    normalization: Literal["none", "utterance"] = "utterance"
    """utterance: every bin has mean 0 and deviation 1 over the utterance's frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.window_ms >= self.hop_ms:  # NaN is invalid as well
            raise self._invalid("window_ms", "must be at least features.hop_ms")
        if int(self.sample_rate_hz * self.hop_ms / 1000) == 0:
            raise self._invalid("hop_ms", f"must be at least a sample at {self.sample_rate_hz} Hz")
        nyquist_hz = self.sample_rate_hz / 2
        high_hz = self.high_hz if self.high_hz > 0 else nyquist_hz + self.high_hz
        if not 0 <= self.low_hz < high_hz <= nyquist_hz:
            band = f"{self.low_hz} to {high_hz} Hz"
            raise self._invalid("high_hz", f"the band {band} must increase within 0..{nyquist_hz}")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Section):
    """SentencePiece model, trained on the training transcripts. Blank is id 0."""

    kind: Literal["auto", "unigram", "bpe", "char"] = "unigram"
    """Kind of pieces; char: one piece per character.
    auto: char or unigram, and their number, by the amount of text; a run keeps what was chosen."""
    vocabulary_size: int = 1024
    """Number of pieces, including blank and unknown; with char and auto only fit uses it."""
    normalization: Literal[
        "none", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf", "lowercase", "other"
    ] = "none"
    """How labels spell text: SentencePiece's rules of that name, or nmt_nfkc in lower case.
    With tokenizer.model, that model's own is kept here; other: one without a name."""
    model: str = ""
    """SentencePiece model to use, of another run or program; empty: one is trained."""
    added_pieces: tuple[str, ...] = ()
    """Pieces that tokenizer.model gets after its own, such as [noise] or letters that it lacks.
    A text with such a piece is always spelled with it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.added_pieces and not self.model:
            raise self._invalid(
                "added_pieces", "needs tokenizer.model, after whose pieces they come"
            )
        if self.normalization == "other" and not self.model:
            raise self._invalid("normalization", "needs tokenizer.model, whose own it names")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Section):
    """Conformer (arXiv 2005.08100), FastConformer (2305.05084: separable subsampling by 8) or
    Transformer, optionally with shared matrices (2310.02489)."""

    kind: Literal["conformer", "transformer"] = "conformer"
    """Kind of blocks."""
    layers: Annotated[int, POSITIVE] = 16
    """Number of blocks."""
    shared_layers: Annotated[int, POSITIVE] = 1
    """Number of adjacent blocks that share their matrices; 1: no sharing.
    Each block adds a low-rank and a diagonal matrix of its own."""
    residual_rank: Annotated[int, NOT_NEGATIVE] = 0
    """Rank of what each block adds to the shared matrices; 0: only the diagonal."""
    width: Annotated[int, POSITIVE] = 144
    """Model dimension."""
    attention: Literal["relative", "rotary"] = "relative"
    """Encoding of positions: relative, as in the paper, or rotary (arXiv 2104.09864)."""
    heads: Annotated[int, POSITIVE] = 4
    """Number of attention heads."""
    feedforward_factor: Annotated[int, POSITIVE] = 4
    """Inner width of the feed-forward modules, as a multiple of encoder.width."""
    kernel_frames: Annotated[int, ODD] = 31
    """Conformer: length of the depthwise convolution in subsampled frames, odd."""
    convolution_norm: Literal["layer", "affine"] = "layer"
    """Conformer: norm after the depthwise convolution.
    affine: a scale and a bias for each channel, as of a BatchNorm with fixed statistics."""
    norm_epsilon: Annotated[float, POSITIVE_AND_FINITE] = 1e-6
    """Term that a LayerNorm adds to the variance."""
    bias: bool = True
    """Biases of the linear layers in blocks; false: they have none."""
    subsampling: Literal["conv2d", "conv1d", "separable"] = "conv2d"
    """conv2d: over time and mel bins, as in the paper.
    conv1d: over time alone, which is faster on a CPU.
    separable: conv2d, depthwise separable after the first convolution, as in FastConformer."""
    subsampling_factor: Literal[4, 8] = 4
    """Feature frames per encoder frame: two strided convolutions for 4, three for 8."""
    subsampling_padding: Literal["centered", "causal"] = "centered"
    """causal: the strided convolutions see no later feature, as in NeMo's cache-aware encoders.
    It saves streams a latency of factor - 1 features."""
    subsampling_channels: Annotated[int, POSITIVE] = 144
    """Channels of the strided convolutions."""
    context_frames: Annotated[tuple[int, ...], CONTEXT] = ()
    """Subsampled frames before and after its own that a frame attends to; empty: all.
    Limit it for long recordings."""
    chunk_ms: Annotated[tuple[float, ...], CHUNKS] = ()
    """Sizes of chunks for streaming, one drawn per step; 0: the whole utterance; empty: none.
    Attention sees no later chunk, and convolutions are causal."""
    left_chunks: Annotated[int, NOT_NEGATIVE] = 4
    """Number of chunks before its own that a frame attends to."""
    left_context_frames: Annotated[int | None, NOT_NEGATIVE] = None
    """Subsampled frames in those chunks: as many chunks of any size as they hold whole.
    None: encoder.left_chunks, whatever the size of a chunk."""
    dropout: Annotated[float, DROPOUT] = 0.1
    """Dropout probability in every residual branch."""
    layer_drop: Annotated[float, FRACTION] = 0.0
    """Probability that an utterance skips the last block in a training step.
    For block l of L it is l / L of this (stochastic depth, arXiv 1603.09382)."""
    remat: Literal["none", "layer", "dots"] = "layer"
    """What the backward pass recomputes: nothing, whole layers, or all but matrix products."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise self._invalid("heads", f"must divide encoder.width = {self.width}")
        if self.attention == "rotary" and self.width // self.heads % 2:
            raise self._invalid(
                "heads",
                "rotary attention needs an even encoder.width / encoder.heads, and the width is "
                f"{self.width}",
            )
        # load_config reports a number of layers that is not an integer.
        if isinstance(self.layers, int) and self.layers % self.shared_layers:
            raise self._invalid("shared_layers", f"must divide encoder.layers = {self.layers}")
        if self.residual_rank > self.width:
            raise self._invalid("residual_rank", f"must be at most encoder.width = {self.width}")
        if self.residual_rank and self.shared_layers == 1:
            raise self._invalid(
                "residual_rank",
                "needs matrices that blocks share, and encoder.shared_layers is 1",
            )
        if self.convolution_norm != "layer" and self.kind != "conformer":
            raise self._invalid(
                "convolution_norm",
                f"needs the convolutions of encoder.kind 'conformer', and it is {self.kind!r}",
            )
        if self.context_frames and self.chunk_ms:
            raise self._invalid(
                "context_frames", "must be empty where encoder.chunk_ms limits the context"
            )
        if self.left_context_frames is not None and not self.chunk_ms:
            raise self._invalid("left_context_frames", "needs encoder.chunk_ms, its chunks")

    @property
    def subsampling_lead(self) -> int:
        """Frames of padding that subsampling puts before the first feature."""
        return self.subsampling_factor - 1 if self.subsampling_padding == "causal" else 0


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(Section):
    """Network over the labels emitted so far."""

    kind: Literal["stateless", "lstm"] = "stateless"
    """stateless: an embedding and a convolution over the last labels (arXiv 2109.07513)."""
    layers: Annotated[int, POSITIVE] = 1
    """lstm: number of layers."""
    context: Annotated[int, POSITIVE] = 2
    """Number of labels that the stateless predictor sees."""
    embedding_width: Annotated[int, POSITIVE] = 320
    """Width of the label embedding."""
    width: Annotated[int, POSITIVE] = 320
    """Width of the predictor's output; lstm: of every layer."""
    dropout: Annotated[float, DROPOUT] = 0.1
    """Dropout probability on the embedding; lstm: also on the output of every layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind != "lstm" and self.layers != 1:
            raise self._invalid(
                "layers", f"must be 1 unless predictor.kind is 'lstm', and it is {self.kind!r}"
            )


@dataclass(frozen=True, kw_only=True)
class JointConfig(Section):
    """Joint network: activation(encoded + predicted) @ kernel + bias."""

    width: Annotated[int, POSITIVE] = 320
    """Width that both sides are projected to."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation between the sum and the output layer."""
    dropout: Annotated[float, DROPOUT] = 0.0
    """Dropout probability between the activation and the output layer; no mask is stored."""
    chunk_frames: Annotated[int | None, POSITIVE] = None
    """Frames whose logits joint and loss hold at a time; None: chosen automatically."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Section):
    """Decoder of objective.kind attention: a Transformer over the labels emitted so far that
    attends to the encoded frames (arXiv 1706.03762)."""

    layers: Annotated[int, POSITIVE] = 6
    """Number of blocks."""
    width: Annotated[int, POSITIVE] = 256
    """Model dimension."""
    heads: Annotated[int, POSITIVE] = 4
    """Number of attention heads."""
    feedforward_factor: Annotated[int, POSITIVE] = 4
    """Inner width of the feed-forward modules, as a multiple of decoder.width."""
    dropout: Annotated[float, DROPOUT] = 0.1
    """Dropout probability on the embedding and in every residual branch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (2 * self.heads):
            raise self._invalid(
                "heads",
                "decoder.width / decoder.heads must be an even number, and the width is "
                f"{self.width}",
            )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Section):
    """Training objective, which also determines the networks after the encoder (docs/models.md)."""

    kind: Literal["transducer", "tdt", "hat", "ctc", "attention", "language_model"] = "transducer"
    """transducer: arXiv 1211.3711.
    tdt: a transducer whose symbols span several frames (arXiv 2304.06795).
    hat: a transducer with a separate decision for blank (arXiv 2003.07705).
    ctc: a linear layer.
    attention: a decoder that attends to all frames (arXiv 1508.01211).
    language_model: a predictor of the next piece, without audio, for fusion (docs/decoding.md)."""
    ctc_weight: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.0
    """Weight of the loss of an additional CTC head; 0: no head. No effect with kind ctc."""
    intermediate_ctc_weight: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.0
    """Weight of the CTC head's loss on the middle block's output (arXiv 2102.03216); 0: none."""
    consistency_weight: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.0
    """Weight of the CR-CTC loss (arXiv 2410.05101); 0: none.
    It compares the CTC posteriors of two views of each utterance, with different masks.
    All other losses are means of both views."""
    fastemit_lambda: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.0
    """transducer, hat: preference for early labels (FastEmit, arXiv 2010.11148); 0: none."""
    durations: Annotated[tuple[int, ...], DURATIONS] = (0, 1, 2, 3, 4)
    """tdt: numbers of frames that a symbol may span."""
    sigma: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.05
    """tdt: cost of every symbol in nats, so that long durations are preferred."""
    label_smoothing: Annotated[float, BELOW_ONE] = 0.1
    """attention: fraction of the target that is spread over all labels (arXiv 1512.00567)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("intermediate_ctc_weight", "consistency_weight"):
            if getattr(self, name) and not self.has_ctc_head:
                rule = "needs a CTC head: objective.kind = 'ctc', or objective.ctc_weight > 0"
                raise self._invalid(name, rule)

    @property
    def has_ctc_head(self) -> bool:
        return self.kind == "ctc" or self.ctc_weight > 0

    @property
    def is_language_model(self) -> bool:
        return self.kind == "language_model"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig(Section):
    """Low-rank adapters of a model that --init-from names (LoRA, arXiv 2106.09685): matrices A B
    that are added to frozen ones. An export adds them up (docs/finetuning.md)."""

    rank: Annotated[int, NOT_NEGATIVE] = 0
    """Rank of the adapters; 0: none. With adapters, no other parameters are trained, except those
    of optimizer.trained."""
    pattern: tuple[str, ...] = ("encoder.blocks.*",)
    """Name patterns of the linear layers that get an adapter, such as *.query or joint.out."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Section):
    """Optimizer, linear warm-up, cosine decay, clipping and averaging."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: orthogonalized momentum for inner matrices, AdamW for the rest (arXiv 2502.16982).
    It learns the small corpora in half the steps."""
    peak_learning_rate: Annotated[float, POSITIVE_AND_FINITE] = 1e-3
    """Learning rate at the end of the warm-up."""
    encoder_learning_rate_ratio: Annotated[float, POSITIVE_AND_FINITE] = 1.0
    """Factor of the encoder's learning rate; below 1 to fine-tune a trained encoder slowly."""
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 1000
    """Steps over which the learning rate rises linearly."""
    decay_steps: Annotated[int, NOT_NEGATIVE] = 0
    """Step at which the learning rate reaches its final value and stays there; 0: train.steps.
    A resumed run keeps its schedule when train.steps changes, unless this is given."""
    final_learning_rate_ratio: Annotated[float, FRACTION] = 0.01
    """Learning rate at the end of the cosine decay, as a fraction of the peak."""
    beta1: Annotated[float, BELOW_ONE] = 0.9
    """AdamW: decay of the first moment per step."""
    beta2: Annotated[float, BELOW_ONE] = 0.98
    """AdamW: decay of the second moment per step."""
    epsilon: Annotated[float, POSITIVE_AND_FINITE] = 1e-9
    """Term that is added to the denominator of an update."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """Weight decay of matrices and convolutions, not of biases, norms and embeddings.
    muon: only of the matrices whose momentum is orthogonalized."""
    clip_norm: Annotated[float, POSITIVE] = 1.0
    """Global norm that gradients are clipped to."""
    ema_decay: Annotated[float, BELOW_ONE] = 0.999
    """Decay per step of the averaged parameters, which evaluation uses; 0: no averaging."""
    frozen: tuple[str, ...] = ()
    """Name patterns of parameters that do not change (docs/finetuning.md).
    encoder.* is the encoder, encoder.blocks.[0-3].* its first four blocks."""
    trained: tuple[str, ...] = ()
    """Name patterns of the only parameters that change, apart from adapters and unless frozen.
    Empty: all, or with adapters none."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """Arrangement of the devices. data * fsdp * model must be the number of devices; on a machine
    without an accelerator, JAX simulates that many on the CPU."""

    data: Annotated[int, Rule(lambda n: n == -1 or n > 0, "must be positive, or -1")] = -1
    """Copies of the model, each with its share of the batch.
    -1: all remaining devices; without an accelerator: one."""
    fsdp: Annotated[int, POSITIVE] = 1
    """Devices that parameters, optimizer state and the batch are split over."""
    model: Annotated[int, POSITIVE] = 1
    """Devices that the widths of large matrices are split over."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """Training loop."""

    steps: Annotated[int, POSITIVE] = 100_000
    """Number of steps; also of the learning-rate schedule, unless optimizer.decay_steps is set."""
    seed: Annotated[int, NOT_NEGATIVE, Rule(lambda n: n < 2**63, "must be below 2^63")] = 0
    """Seed of initialization, data order, augmentation and dropout."""
    accumulate: Annotated[int, POSITIVE] = 1
    """Micro-batches that a batch is split into, computed one after the other."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters, optimizer state and the lattice stay float32."""
    log_every_steps: Annotated[int, POSITIVE] = 20
    """Steps from one line of metrics.jsonl to the next."""
    wandb_project: str = ""
    """Weights & Biases project that metrics are also sent to; empty: none."""
    evaluate_every_steps: Annotated[int, POSITIVE] = 1000
    """Steps from one evaluation (WER or perplexity) on data.dev to the next.
    The last step is always evaluated."""
    max_skipped_in_a_row: Annotated[int, POSITIVE] = 10
    """Consecutive steps with a non-finite loss or gradient after which the run has diverged."""
    divergence_factor: Annotated[float, Rule(lambda x: x > 1, "must be above 1")] = 5.0
    """Ratio of the mean loss to its lowest value above which the run has also diverged.
    The mean is over about a hundred steps."""
    rollbacks: Annotated[int, NOT_NEGATIVE] = 0
    """Times that a diverged run returns to its last good checkpoint before it stops.
    It continues with the data that comes next."""
    rollback_learning_rate_factor: Annotated[float, POSITIVE_FRACTION] = 0.5
    """Factor that each rollback multiplies the learning rate by."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """Checkpoints on disk."""

    every_steps: Annotated[int, POSITIVE] = 1000
    """Steps from one checkpoint to the next; the last step is always saved."""
    keep: Annotated[int, POSITIVE] = 3
    """Newest checkpoints to keep, in addition to the best one on data.dev."""
    directory: str = ""
    """Folder or bucket (gs://BUCKET/RUN) of the checkpoints; empty: the run directory."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig(Section):
    """Search for labels."""

    head: Literal["objective", "ctc"] = "objective"
    """Networks to search with: the objective's own, or its CTC head."""
    max_symbols_per_frame: Annotated[int, POSITIVE] = 5
    """Maximum number of labels at one frame. No effect on CTC, which emits at most one."""
    beam: Annotated[int, NOT_NEGATIVE] = 0
    """Label sequences that beam search keeps (transducer, hat, attention); 0: greedy search."""
    ctc_weight: Annotated[float, CTC_SHARE] = 0.0
    """attention: weight of the CTC head in the score of a label sequence (arXiv 1609.06773)."""
    chunk_ms: float = 0.0
    """Chunk size for recognition as in streaming (see encoder.chunk_ms); 0: whole utterances."""
    window_seconds: Annotated[float, WINDOW] = 40.0
    """Longer recordings are recognized in windows of this length; 0: never.
    Windows overlap by 4 s, and their transcripts are merged. LibriSpeech needs none.
    No effect on attention without a CTC head, which has no times."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of an experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)

    def __post_init__(self) -> None:
        # load_config reports a value that is not a section.
        if all(isinstance(getattr(self, section.name), Section) for section in fields(self)):
            self._check_training()
            self._check_search()
            self._check_chunks()

    def _check_training(self) -> None:
        objective, train = self.objective, self.train
        for utterances in self.data.bucket_utterances:
            if utterances % train.accumulate:
                rule = f"must divide every data.bucket_utterances, also {utterances}"
                raise _invalid("train.accumulate", train.accumulate, rule)
        if objective.is_language_model:
            rule = "a language model has none; its perplexity is measured on data.dev"
            if objective.ctc_weight:
                raise _invalid("objective.ctc_weight", objective.ctc_weight, rule)
            if self.data.test:
                raise _invalid("data.test", self.data.test, rule)
        if objective.intermediate_ctc_weight and self.encoder.layers <= 1:
            raise _invalid(
                "objective.intermediate_ctc_weight",
                objective.intermediate_ctc_weight,
                "needs an encoder with a block before the last, and encoder.layers is 1",
            )

    def _check_search(self) -> None:
        kind, decoding = self.objective.kind, self.decoding
        if decoding.head == "ctc" and not self.objective.has_ctc_head:
            rule = f"objective.kind = {kind!r} has no CTC head: objective.ctc_weight is 0"
            raise _invalid("decoding.head", decoding.head, rule)
        searchable = kind in ("transducer", "hat", "attention") and decoding.head == "objective"
        if decoding.beam and not searchable:
            raise _invalid(
                "decoding.beam",
                decoding.beam,
                f"there is no beam search for objective.kind = {kind!r}, decoding.head = "
                f"{decoding.head!r}: only for transducer, hat and attention",
            )
        if decoding.ctc_weight and not (kind == "attention" and self.objective.has_ctc_head):
            raise _invalid(
                "decoding.ctc_weight",
                decoding.ctc_weight,
                "needs objective.kind = 'attention' and a CTC head (objective.ctc_weight > 0)",
            )

    def _check_chunks(self) -> None:
        sizes_ms, decoding_ms = self.encoder.chunk_ms, self.decoding.chunk_ms
        for name, chunk_ms in [
            *(("encoder.chunk_ms", chunk_ms) for chunk_ms in sizes_ms),
            ("decoding.chunk_ms", decoding_ms),
        ]:
            frame_ms = self.encoder.subsampling_factor * self.features.hop_ms
            if not 0 <= chunk_ms < math.inf or chunk_frames(chunk_ms, self) * frame_ms != chunk_ms:
                rule = f"must be a multiple of the encoder's frame of {frame_ms:g} ms"
                raise _invalid(name, chunk_ms, rule)
        if decoding_ms and not sizes_ms:
            rule = "needs an encoder trained with encoder.chunk_ms"
            raise _invalid("decoding.chunk_ms", decoding_ms, rule)
        if sizes_ms and self.features.normalization != "none":
            rule = "needs features.normalization = 'none': a stream has no statistics in advance"
            raise _invalid("encoder.chunk_ms", sizes_ms, rule)


def chunk_frames(chunk_ms: float, config: Config) -> int:
    """Return the number of encoder frames in a chunk."""
    return round(chunk_ms / (config.encoder.subsampling_factor * config.features.hop_ms))


def flatten(config: Config) -> dict[str, object]:
    """Return every field by its dotted name, sorted: the contents of config.json."""
    nested = asdict(config)
    flat = {
        f"{part}.{name}": value for part, fields in nested.items() for name, value in fields.items()
    }
    return dict(sorted(flat.items()))
