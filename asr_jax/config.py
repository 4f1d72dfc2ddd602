"""Every setting of an experiment: frozen dataclasses with units, the only schema.

A file in configs/ ends in `config = Config(...)`. The command line overrides any field
(`--optimizer.peak-learning-rate 1e-3`), and the resolved values are saved beside the
checkpoints as flat JSON (`"encoder.layers": 12`), which can be run again.
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
POSITIVE_FRACTION = Rule(lambda x: 0 < x <= 1, "must lie in 0..1")
CTC_SHARE = Rule(
    lambda x: 0 <= x < 1, "must lie in 0..1, below 1; for CTC alone there is decoding.head"
)
WINDOW = Rule(lambda x: x == 0 or x >= 6, "must be at least 6, or 0")
# Dropout rounds to 1/256, and needs something to be left.
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
    lambda *edges: bool(edges) and _increase(0, *edges, math.inf),
    "must be positive and increasing, and finite",
)
CONTEXT = Rule(
    lambda *frames: len(frames) in (0, 2) and all(n >= 0 for n in frames),
    "needs two numbers, frames before and after, not negative; or none",
)
CHUNKS = Rule(lambda *sizes: not sizes or any(sizes), "needs a size besides 0, or none at all")
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
    """Which recordings, and the few static shapes their batches are padded to."""

    train: str = ""
    """What to train on: a folder, a manifest, a Kaldi directory or tar shards, of a language model
    also a text (docs/data.md)."""
    more_train: tuple[str, ...] = ()
    """Further corpora to train on. Their ids are prefixed by their place here: 1:ID, 2:ID."""
    train_weights: tuple[float, ...] = ()
    """How many times an epoch goes through data.train and each of data.more_train; empty: once."""
    dev: str = ""
    """The same, for choosing the best checkpoint; empty: none is chosen."""
    test: str = ""
    """The same, read once when training has ended; empty: not read."""
    min_seconds: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.1
    """Shorter training recordings are left out, counted and listed."""
    bucket_seconds: Annotated[tuple[float, ...], BUCKET_EDGES] = (4.0, 8.0, 16.0)
    """Upper edge of each bucket, in seconds after speed and tempo changes, increasing."""
    bucket_labels: tuple[int, ...] = (32, 64, 128)
    """Most labels that an utterance of each bucket may have."""
    bucket_utterances: tuple[int, ...] = (32, 16, 8)
    """Utterances in a (global) batch of each bucket."""
    read_threads: Annotated[int, POSITIVE] = 2
    """Threads that decode and pad batches ahead of the step."""
    read_ahead_batches: Annotated[int, POSITIVE] = 8
    """Batches kept ready."""
    cache_gib: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 4.0
    """Decoded audio kept in memory, so that each recording is decoded once; 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        buckets = len(self.bucket_seconds)
        for name in ("bucket_labels", "bucket_utterances"):
            values = getattr(self, name)
            if len(values) != buckets or any(n <= 0 for n in values):
                rule = f"needs one positive value for each of the {buckets} data.bucket_seconds"
                raise self._invalid(name, rule)
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
                "needs corpora that differ from each other and from data.train; to go through one "
                "more often there is data.train_weights",
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Section):
    """Changes made to the training recordings only."""

    speeds: Annotated[tuple[float, ...], SPEEDS] = (0.9, 1.0, 1.1)
    """Speed perturbation (tempo and pitch): one factor is drawn per utterance and epoch."""
    tempo_range: Annotated[tuple[float, float], TEMPO] = (1.0, 1.0)
    """Time stretching of the features, pitch kept: a log-uniform factor; above 1 is faster."""
    join_probability: Annotated[float, FRACTION] = 0.0
    """Share of utterances that are followed by another one of the same speaker."""
    impulse_responses: str = ""
    """Folder of room impulse responses, one convolved with the (joined) utterance; empty: none."""
    impulse_response_probability: Annotated[float, FRACTION] = 0.5
    """Share of utterances put into a room."""
    noise: str = ""
    """Folder of recordings without transcripts, such as MUSAN's noise; empty: none is added."""
    noise_probability: Annotated[float, FRACTION] = 0.5
    """Share of utterances to which a stretch of one of them is added."""
    noise_snr_db: Annotated[tuple[float, float], DECIBELS] = (5.0, 20.0)
    """Mean power of the utterance, in its room, over that of the stretch: an even draw."""
    gain_db: Annotated[tuple[float, float], DECIBELS] = (0.0, 0.0)
    """Change of level, last of all: an even draw. Nothing is clipped at full scale. Of no effect on
    features that are normalized (features.normalization)."""
    frequency_masks: Annotated[int, NOT_NEGATIVE] = 2
    """SpecAugment (arXiv 1904.08779): masks along mel bins."""
    frequency_mask_bins: Annotated[int, NOT_NEGATIVE] = 27
    """Widest frequency mask."""
    time_masks: Annotated[int, NOT_NEGATIVE] = 10
    """Masks along time."""
    time_mask_fraction: Annotated[float, FRACTION] = 0.05
    """Widest time mask as a share of the utterance."""


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(Section):
    """Log-mel filterbank; the defaults are Kaldi's with dither 0 and snip_edges false."""

    sample_rate_hz: Annotated[int, POSITIVE] = 16_000
    """Recordings at other rates are resampled to it."""
    window_ms: float = 25.0
    """Length of a frame."""
    hop_ms: Annotated[float, POSITIVE] = 10.0
    """From one frame to the next."""
    window: Literal["povey", "hann", "hamming"] = "povey"
    """Shape of the window."""
    mel_bins: Annotated[int, POSITIVE] = 80
    """Filters."""
    mel_scale: Literal["kaldi", "slaney"] = "kaldi"
    """kaldi: 1127 ln(1 + f / 700), triangles of height 1; slaney: librosa's, of area 1."""
    low_hz: float = 20.0
    """Lower edge of the first filter."""
    high_hz: float = -400.0
    """Upper edge of the last filter; zero or negative: that much below half the sample rate."""
    preemphasis: Annotated[float, FRACTION] = 0.97
    """Pre-emphasis within each frame; 0 for none."""
    remove_dc: bool = True
    """Subtract each frame's mean first."""
    normalization: Literal["none", "utterance"] = "utterance"
    """utterance: every bin to mean 0 and deviation 1 over the utterance's frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window_ms < self.hop_ms:
            raise self._invalid("window_ms", "must be at least features.hop_ms")
        if int(self.sample_rate_hz * self.hop_ms / 1000) == 0:
            raise self._invalid("hop_ms", f"must be at least a sample at {self.sample_rate_hz} Hz")
        nyquist_hz = self.sample_rate_hz / 2
        high_hz = self.high_hz if self.high_hz > 0 else nyquist_hz + self.high_hz
        if not 0 <= self.low_hz < high_hz <= nyquist_hz:
            raise self._invalid(
                "high_hz",
                f"the band {self.low_hz} to {high_hz} Hz must rise and lie within 0..{nyquist_hz}",
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Section):
    """SentencePiece, trained on the training transcripts. Blank is id 0."""

    kind: Literal["unigram", "bpe", "char"] = "unigram"
    """char: one piece per character."""
    vocabulary_size: int = 1024
    """Pieces, blank and unknown included; ignored for char, but by fit."""
    model: str = ""
    """Another run's tokenizer.model to take in place of training one; empty: one is trained."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Section):
    """Conformer (arXiv 2005.08100), FastConformer (2305.05084: separable subsampling by 8), or
    Transformer; also with shared matrices (2310.02489)."""

    kind: Literal["conformer", "transformer"] = "conformer"
    """What its blocks are."""
    layers: Annotated[int, POSITIVE] = 16
    """Blocks."""
    shared_layers: Annotated[int, POSITIVE] = 1
    """Neighbouring blocks that share their matrices; to these each adds a low-rank and a diagonal
    matrix of its own. 1: every block has matrices of its own."""
    residual_rank: Annotated[int, NOT_NEGATIVE] = 0
    """Rank of what each block adds to the shared matrices; 0: nothing but the diagonal."""
    width: Annotated[int, POSITIVE] = 144
    """Model dimension."""
    attention: Literal["relative", "rotary"] = "relative"
    """How it knows positions: by distance, as in the paper, or by rotation (arXiv 2104.09864)."""
    heads: Annotated[int, POSITIVE] = 4
    """Attention heads."""
    feedforward_factor: Annotated[int, POSITIVE] = 4
    """Inner width of the feed-forward modules, as a multiple of width."""
    kernel_frames: Annotated[int, ODD] = 31
    """Conformer: the depthwise convolution's length in (subsampled) frames, odd."""
    subsampling: Literal["conv2d", "conv1d", "separable"] = "conv2d"
    """Over time and mel bins, as in the paper, or over time alone, which is faster on a CPU;
    separable: as conv2d, but channel by channel after the first, as in FastConformer."""
    subsampling_factor: Literal[4, 8] = 4
    """Frames of features that make one of the encoder: two strided convolutions, or three."""
    subsampling_channels: Annotated[int, POSITIVE] = 144
    """Channels of the strided convolutions."""
    context_frames: Annotated[tuple[int, ...], CONTEXT] = ()
    """Limited context, for long recordings: the (subsampled) frames before and after its own that a
    frame attends to; empty: all."""
    chunk_ms: Annotated[tuple[float, ...], CHUNKS] = ()
    """For streaming: sizes of chunks, one of which is drawn for every step; 0: the whole utterance.
    Attention then sees no chunk after its own, and convolutions are causal. Empty: no chunks."""
    left_chunks: Annotated[int, NOT_NEGATIVE] = 4
    """Chunks before its own that a frame attends to."""
    dropout: Annotated[float, DROPOUT] = 0.1
    """Probability of dropping, in every residual branch."""
    layer_drop: Annotated[float, FRACTION] = 0.0
    """Probability that the last block is left out of an utterance's training step; of the blocks
    before it in proportion to their number (stochastic depth, arXiv 1603.09382)."""
    remat: Literal["none", "layer", "dots"] = "layer"
    """What the backward pass recomputes: nothing, whole layers, or all but matrix products."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise self._invalid("heads", f"must divide encoder.width = {self.width}")
        if self.attention == "rotary" and self.width // self.heads % 2:
            raise self._invalid(
                "heads",
                f"rotary attention needs an even encoder.width / encoder.heads, {self.width} wide",
            )
        # load_config reports a number of layers that is not an integer.
        if isinstance(self.layers, int) and self.layers % self.shared_layers:
            raise self._invalid("shared_layers", f"must divide encoder.layers = {self.layers}")
        if self.residual_rank > self.width:
            raise self._invalid("residual_rank", f"must be at most encoder.width = {self.width}")
        if self.residual_rank and self.shared_layers == 1:
            raise self._invalid(
                "residual_rank",
                "adds to matrices that blocks share, and encoder.shared_layers is 1",
            )
        if self.context_frames and self.chunk_ms:
            raise self._invalid(
                "context_frames", "must be empty where encoder.chunk_ms says what is seen"
            )


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(Section):
    """The network over the labels emitted so far."""

    kind: Literal["stateless", "lstm"] = "stateless"
    """stateless: embedding and a convolution over the last context labels (arXiv 2109.07513)."""
    context: Annotated[int, POSITIVE] = 2
    """Labels that the stateless predictor sees."""
    embedding_width: Annotated[int, POSITIVE] = 320
    """Width of the label embedding."""
    width: Annotated[int, POSITIVE] = 320
    """Width of the predictor's output (lstm: of its state)."""
    dropout: Annotated[float, DROPOUT] = 0.1
    """Probability of dropping, on the embedding (lstm: and on the output)."""


@dataclass(frozen=True, kw_only=True)
class JointConfig(Section):
    """activation(encoded + predicted) @ kernel + bias."""

    width: Annotated[int, POSITIVE] = 320
    """Both sides are projected to it."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the sum and the output layer."""
    chunk_frames: Annotated[int | None, POSITIVE] = None
    """Frames per scanned, rematerialised chunk of joint and loss; None chooses."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(Section):
    """The network of objective.kind attention: a Transformer over the labels emitted so far that
    attends to the encoded frames (arXiv 1706.03762)."""

    layers: Annotated[int, POSITIVE] = 6
    """Blocks."""
    width: Annotated[int, POSITIVE] = 256
    """Model dimension."""
    heads: Annotated[int, POSITIVE] = 4
    """Attention heads."""
    feedforward_factor: Annotated[int, POSITIVE] = 4
    """Inner width of the feed-forward modules, as a multiple of width."""
    dropout: Annotated[float, DROPOUT] = 0.1
    """Probability of dropping, on the embedding and in every residual branch."""

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
    """What is learned, and with it which networks stand behind the encoder (docs/models.md)."""

    kind: Literal["transducer", "tdt", "hat", "ctc", "attention", "language_model"] = "transducer"
    """transducer (arXiv 1211.3711); tdt: one whose symbols last for several frames (2304.06795);
    hat: one whose blank is a decision of its own (2003.07705); ctc: no more than a linear layer;
    attention: a decoder that attends to all frames (1508.01211); language_model: a predictor of the
    next piece, without encoder and audio, which fusion adds to a recogniser (docs/decoding.md)."""
    ctc_weight: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.0
    """Weight of a CTC head beside the objective; 0 for none. Of no effect with kind ctc."""
    intermediate_ctc_weight: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.0
    """Weight of the same CTC head's loss on what the block in the middle makes (arXiv 2102.03216);
    0 for none."""
    consistency_weight: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.0
    """Weight of the divergence between the CTC head's posteriors of two views of each utterance,
    masked apart (CR-CTC, arXiv 2410.05101), all losses being means of both; 0 for one view."""
    fastemit_lambda: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.0
    """transducer, hat: by how much more labels are wanted than blanks, early (arXiv 2010.11148)."""
    durations: Annotated[tuple[int, ...], DURATIONS] = (0, 1, 2, 3, 4)
    """tdt: the numbers of frames that a symbol may last for."""
    sigma: Annotated[float, NOT_NEGATIVE_AND_FINITE] = 0.05
    """tdt: nats that every symbol costs, so that long durations are preferred."""
    label_smoothing: Annotated[float, BELOW_ONE] = 0.1
    """attention: share of the target that is spread over all labels (arXiv 1512.00567)."""

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
class OptimizerConfig(Section):
    """Linear warm-up, cosine decay, clipping, averaging."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon (arXiv 2502.16982): orthogonalised momentum for the matrices inside the networks, AdamW
    for the rest. Learns the small corpora in half the steps."""
    peak_learning_rate: Annotated[float, POSITIVE_AND_FINITE] = 1e-3
    """Reached at the end of the warm-up."""
    warmup_steps: Annotated[int, NOT_NEGATIVE] = 1000
    """Steps of linear rise."""
    final_learning_rate_ratio: Annotated[float, FRACTION] = 0.01
    """Where the cosine ends, as a share of the peak."""
    beta1: Annotated[float, BELOW_ONE] = 0.9
    beta2: Annotated[float, BELOW_ONE] = 0.98
    epsilon: Annotated[float, POSITIVE_AND_FINITE] = 1e-9
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    """On matrices and convolutions, not on biases, norms or embeddings (muon: on its own only)."""
    clip_norm: Annotated[float, POSITIVE] = 1.0
    """Global norm that gradients are clipped to."""
    ema_decay: Annotated[float, BELOW_ONE] = 0.999
    """Decay per step of the averaged parameters, which evaluation uses; 0: no averaging."""
    frozen: tuple[str, ...] = ()
    """Parameters that keep their bits, by patterns of their names: encoder.* or, of the blocks
    numbered from 0, encoder.blocks.[0-3].* (docs/finetuning.md)."""


@dataclass(frozen=True, kw_only=True)
class MeshConfig(Section):
    """How the devices are arranged. data * fsdp * model must be the number of devices; of a
    processor without accelerator as many are made."""

    data: Annotated[int, Rule(lambda n: n == -1 or n > 0, "must be positive, or -1")] = -1
    """Copies of the model, each on its share of the batch; -1: all devices that are left (of a
    processor without accelerator: one)."""
    fsdp: Annotated[int, POSITIVE] = 1
    """Devices over which parameters and optimizer state are split, and the batch too."""
    model: Annotated[int, POSITIVE] = 1
    """Devices over which the widths of large matrices are split."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """The loop."""

    steps: Annotated[int, POSITIVE] = 100_000
    """Steps until the end of the learning-rate schedule, and of training."""
    seed: Annotated[int, NOT_NEGATIVE, Rule(lambda n: n < 2**63, "must be below 2^63")] = 0
    """Of initialisation, data order, augmentation and dropout."""
    accumulate: Annotated[int, POSITIVE] = 1
    """Micro-batches that a batch is split into, one after the other."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters, optimizer state and the lattice stay float32."""
    log_every_steps: Annotated[int, POSITIVE] = 20
    """Steps from one line of metrics.jsonl to the next."""
    wandb_project: str = ""
    """Project of Weights & Biases that the figures go to as well; empty: none."""
    evaluate_every_steps: Annotated[int, POSITIVE] = 1000
    """Steps from one WER, or perplexity, on dev to the next; the last step is always evaluated."""
    max_skipped_in_a_row: Annotated[int, POSITIVE] = 10
    """Consecutive steps with a non-finite loss or gradient after which the run has diverged."""
    divergence_factor: Annotated[float, Rule(lambda x: x > 1, "must be above 1")] = 5.0
    """It has too when the mean loss of some hundred steps is that many times its lowest so far."""
    rollbacks: Annotated[int, NOT_NEGATIVE] = 0
    """Times that a run which diverged goes back to its last good checkpoint, and on with the data
    that comes next; after these it stops."""
    rollback_learning_rate_factor: Annotated[float, POSITIVE_FRACTION] = 0.5
    """What the learning rate is multiplied by at each of them."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Section):
    """What is kept on disk."""

    every_steps: Annotated[int, POSITIVE] = 1000
    """Steps from one checkpoint to the next; the last step is always saved."""
    keep: Annotated[int, POSITIVE] = 3
    """Newest checkpoints kept, beside the best by WER, or perplexity, on dev."""
    directory: str = ""
    """Folder or bucket (gs://BUCKET/RUN) that holds them; empty: the run directory."""


@dataclass(frozen=True, kw_only=True)
class DecodingConfig(Section):
    """How labels are searched for."""

    head: Literal["objective", "ctc"] = "objective"
    """What to search with: the objective's own networks, or the CTC head beside them."""
    max_symbols_per_frame: Annotated[int, POSITIVE] = 5
    """Bound on the labels emitted at one frame (not of CTC, which emits one at most)."""
    beam: Annotated[int, NOT_NEGATIVE] = 0
    """Label sequences that a beam search keeps; 0: greedy search. For transducer, HAT and
    attention."""
    ctc_weight: Annotated[float, CTC_SHARE] = 0.0
    """attention: share of the CTC head in the score of a label sequence (arXiv 1609.06773)."""
    chunk_ms: float = 0.0
    """Recognises as in streaming, by chunks of this size (see encoder.chunk_ms); 0: whole
    utterances."""
    window_seconds: Annotated[float, WINDOW] = 40.0
    """Longer recordings are recognised in windows of this length, which overlap by 4 s, and joined;
    0: whole, however long. The default leaves LibriSpeech's whole. Without an effect on attention
    without a CTC head, which knows no times."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """An experiment."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    joint: JointConfig = field(default_factory=JointConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
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
        if objective.kind == "language_model":
            rule = "a language model has none; its perplexity is that of data.dev"
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
                "needs objective.kind = 'attention' and a CTC head beside it, objective.ctc_weight "
                "> 0",
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
            rule = "needs features.normalization = 'none': a stream is not known as a whole"
            raise _invalid("encoder.chunk_ms", sizes_ms, rule)


def chunk_frames(chunk_ms: float, config: Config) -> int:
    """The encoder's frames in a chunk."""
    return round(chunk_ms / (config.encoder.subsampling_factor * config.features.hop_ms))


def flatten(config: Config) -> dict[str, object]:
    """Every field under its dotted name, sorted: what config.json holds."""
    nested = asdict(config)
    flat = {
        f"{part}.{name}": value for part, fields in nested.items() for name, value in fields.items()
    }
    return dict(sorted(flat.items()))
