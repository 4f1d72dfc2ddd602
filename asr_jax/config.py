"""Every setting of an experiment: frozen dataclasses with units, the only schema.

A file in configs/ ends in `config = Config(...)`. The command line overrides any field
(`--optimizer.peak-learning-rate 1e-3`), and the resolved values are saved beside the
checkpoints as flat JSON (`"encoder.layers": 12`), which can be run again.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Literal


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value!r}: {rule}")


def _require_numbers(
    section: object, prefix: str, *names: str, holds: Callable[[float], bool], rule: str
) -> None:
    for name in names:
        value = getattr(section, name)
        # Whoever reads the file tells what is not a number at all.
        if isinstance(value, int | float):
            _require(holds(value), f"{prefix}.{name}", value, rule)


def _require_positive(section: object, prefix: str, *names: str) -> None:
    _require_numbers(section, prefix, *names, holds=lambda x: x > 0, rule="must be positive")


def _require_not_negative(section: object, prefix: str, *names: str) -> None:
    _require_numbers(section, prefix, *names, holds=lambda x: x >= 0, rule="must not be negative")


def _require_dropout(section: object, prefix: str) -> None:
    # Dropout rounds to 1/256, and needs something to be left.
    _require_numbers(
        section, prefix, "dropout", holds=lambda x: 0 <= x <= 0.99, rule="must lie in 0..0.99"
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
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
    min_seconds: float = 0.1
    """Shorter training recordings are left out, counted and listed."""
    bucket_seconds: tuple[float, ...] = (4.0, 8.0, 16.0)
    """Upper edge of each bucket, in seconds after speed and tempo changes, increasing."""
    bucket_labels: tuple[int, ...] = (32, 64, 128)
    """Most labels that an utterance of each bucket may have."""
    bucket_utterances: tuple[int, ...] = (32, 16, 8)
    """Utterances in a (global) batch of each bucket."""
    read_threads: int = 2
    """Threads that decode and pad batches ahead of the step."""
    read_ahead_batches: int = 8
    """Batches kept ready."""
    cache_gib: float = 4.0
    """Decoded audio kept in memory, so that each recording is decoded once; 0: never."""

    def __post_init__(self) -> None:
        edges = self.bucket_seconds
        _require(
            bool(edges) and all(a < b < math.inf for a, b in zip((0.0, *edges), edges)),
            "data.bucket_seconds",
            edges,
            "must be positive and increasing, and finite",
        )
        for name in ("bucket_labels", "bucket_utterances"):
            values = getattr(self, name)
            _require(
                len(values) == len(edges) and all(v > 0 for v in values),
                f"data.{name}",
                values,
                f"needs one positive value for each of the {len(edges)} data.bucket_seconds",
            )
        _require(
            0 <= self.min_seconds < math.inf,
            "data.min_seconds",
            self.min_seconds,
            "must be finite, >= 0",
        )
        corpora = 1 + len(self.more_train)
        _require(
            len(self.train_weights) in (0, corpora)
            and all(0 < weight < math.inf for weight in self.train_weights),
            "data.train_weights",
            self.train_weights,
            f"needs a positive value for data.train and each of data.more_train, {corpora} in all",
        )
        _require(
            all(self.more_train) and len({self.train, *self.more_train}) == corpora,
            "data.more_train",
            self.more_train,
            "needs corpora that differ from each other and from data.train; to go through one more "
            "often there is data.train_weights",
        )
        _require(self.read_threads > 0, "data.read_threads", self.read_threads, "must be positive")
        _require(
            self.read_ahead_batches > 0,
            "data.read_ahead_batches",
            self.read_ahead_batches,
            "must be positive",
        )
        _require(
            0 <= self.cache_gib < math.inf, "data.cache_gib", self.cache_gib, "must be finite, >= 0"
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Changes made to the training recordings only."""

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    """Speed perturbation (tempo and pitch): one factor is drawn per utterance and epoch."""
    tempo_range: tuple[float, float] = (1.0, 1.0)
    """Time stretching of the features, pitch kept: a log-uniform factor; above 1 is faster."""
    join_probability: float = 0.0
    """Share of utterances that are followed by another one of the same speaker."""
    impulse_responses: str = ""
    """Folder of room impulse responses, one convolved with the (joined) utterance; empty: none."""
    impulse_response_probability: float = 0.5
    """Share of utterances put into a room."""
    noise: str = ""
    """Folder of recordings without transcripts, such as MUSAN's noise; empty: none is added."""
    noise_probability: float = 0.5
    """Share of utterances to which a stretch of one of them is added."""
    noise_snr_db: tuple[float, float] = (5.0, 20.0)
    """Mean power of the utterance, in its room, over that of the stretch: an even draw."""
    gain_db: tuple[float, float] = (0.0, 0.0)
    """Change of level, last of all: an even draw. Nothing is clipped at full scale. Of no effect on
    features that are normalized (features.normalization)."""
    frequency_masks: int = 2
    """SpecAugment (arXiv 1904.08779): masks along mel bins."""
    frequency_mask_bins: int = 27
    """Widest frequency mask."""
    time_masks: int = 10
    """Masks along time."""
    time_mask_fraction: float = 0.05
    """Widest time mask as a share of the utterance."""

    def __post_init__(self) -> None:
        _require_not_negative(
            self, "augment", "frequency_masks", "frequency_mask_bins", "time_masks"
        )
        _require(
            bool(self.speeds) and all(0.1 <= s <= 10 for s in self.speeds),
            "augment.speeds",
            self.speeds,
            "needs at least one factor, all in 0.1..10",
        )
        low, high = self.tempo_range
        _require(
            0 < low <= high < math.inf,
            "augment.tempo_range",
            self.tempo_range,
            "needs 0 < lowest <= highest, finite",
        )
        _require_numbers(
            self,
            "augment",
            *(
                "join_probability",
                "impulse_response_probability",
                "noise_probability",
                "time_mask_fraction",
            ),
            holds=lambda x: 0 <= x <= 1,
            rule="must lie in 0..1",
        )
        for name in ("noise_snr_db", "gain_db"):
            low, high = getattr(self, name)
            _require(
                -100 <= low <= high <= 100,
                f"augment.{name}",
                (low, high),
                "needs -100 <= lowest <= highest <= 100",
            )


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """Log-mel filterbank; the defaults are Kaldi's with dither 0 and snip_edges false."""

    sample_rate_hz: int = 16_000
    """Recordings at other rates are resampled to it."""
    window_ms: float = 25.0
    """Length of a frame."""
    hop_ms: float = 10.0
    """From one frame to the next."""
    window: Literal["povey", "hann", "hamming"] = "povey"
    """Shape of the window."""
    mel_bins: int = 80
    """Filters."""
    mel_scale: Literal["kaldi", "slaney"] = "kaldi"
    """kaldi: 1127 ln(1 + f / 700), triangles of height 1; slaney: librosa's, of area 1."""
    low_hz: float = 20.0
    """Lower edge of the first filter."""
    high_hz: float = -400.0
    """Upper edge of the last filter; zero or negative: that much below half the sample rate."""
    preemphasis: float = 0.97
    """Pre-emphasis within each frame; 0 for none."""
    remove_dc: bool = True
    """Subtract each frame's mean first."""
    normalization: Literal["none", "utterance"] = "utterance"
    """utterance: every bin to mean 0 and deviation 1 over the utterance's frames."""

    def __post_init__(self) -> None:
        _require(
            self.sample_rate_hz > 0,
            "features.sample_rate_hz",
            self.sample_rate_hz,
            "must be positive",
        )
        _require(self.hop_ms > 0, "features.hop_ms", self.hop_ms, "must be positive")
        _require(
            self.window_ms >= self.hop_ms,
            "features.window_ms",
            self.window_ms,
            "must be at least features.hop_ms",
        )
        _require(
            int(self.sample_rate_hz * self.hop_ms / 1000) > 0,
            "features.hop_ms",
            self.hop_ms,
            f"must be at least a sample at {self.sample_rate_hz} Hz",
        )
        _require_positive(self, "features", "mel_bins")
        _require_numbers(
            self, "features", "preemphasis", holds=lambda x: 0 <= x <= 1, rule="must lie in 0..1"
        )
        nyquist_hz = self.sample_rate_hz / 2
        high_hz = self.high_hz if self.high_hz > 0 else nyquist_hz + self.high_hz
        _require(
            0 <= self.low_hz < high_hz <= nyquist_hz,
            "features.high_hz",
            self.high_hz,
            f"the band {self.low_hz} to {high_hz} Hz must rise and lie within 0..{nyquist_hz}",
        )


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """SentencePiece, trained on the training transcripts. Blank is id 0."""

    kind: Literal["unigram", "bpe", "char"] = "unigram"
    """char: one piece per character."""
    vocabulary_size: int = 1024
    """Pieces, blank and unknown included; ignored for char, but by fit."""
    model: str = ""
    """Another run's tokenizer.model to take in place of training one; empty: one is trained."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Conformer (arXiv 2005.08100), FastConformer (2305.05084: separable subsampling by 8), or
    Transformer; also with shared matrices (2310.02489)."""

    kind: Literal["conformer", "transformer"] = "conformer"
    """What its blocks are."""
    layers: int = 16
    """Blocks."""
    shared_layers: int = 1
    """Neighbouring blocks that share their matrices; to these each adds a low-rank and a diagonal
    matrix of its own. 1: every block has matrices of its own."""
    residual_rank: int = 0
    """Rank of what each block adds to the shared matrices; 0: nothing but the diagonal."""
    width: int = 144
    """Model dimension."""
    attention: Literal["relative", "rotary"] = "relative"
    """How it knows positions: by distance, as in the paper, or by rotation (arXiv 2104.09864)."""
    heads: int = 4
    """Attention heads."""
    feedforward_factor: int = 4
    """Inner width of the feed-forward modules, as a multiple of width."""
    kernel_frames: int = 31
    """Conformer: the depthwise convolution's length in (subsampled) frames, odd."""
    subsampling: Literal["conv2d", "conv1d", "separable"] = "conv2d"
    """Over time and mel bins, as in the paper, or over time alone, which is faster on a CPU;
    separable: as conv2d, but channel by channel after the first, as in FastConformer."""
    subsampling_factor: Literal[4, 8] = 4
    """Frames of features that make one of the encoder: two strided convolutions, or three."""
    subsampling_channels: int = 144
    """Channels of the strided convolutions."""
    context_frames: tuple[int, ...] = ()
    """Limited context, for long recordings: the (subsampled) frames before and after its own that a
    frame attends to; empty: all."""
    chunk_ms: tuple[float, ...] = ()
    """For streaming: sizes of chunks, one of which is drawn for every step; 0: the whole utterance.
    Attention then sees no chunk after its own, and convolutions are causal. Empty: no chunks."""
    left_chunks: int = 4
    """Chunks before its own that a frame attends to."""
    dropout: float = 0.1
    """Probability of dropping, in every residual branch."""
    layer_drop: float = 0.0
    """Probability that the last block is left out of an utterance's training step; of the blocks
    before it in proportion to their number (stochastic depth, arXiv 1603.09382)."""
    remat: Literal["none", "layer", "dots"] = "layer"
    """What the backward pass recomputes: nothing, whole layers, or all but matrix products."""

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "encoder",
            "layers",
            "width",
            "heads",
            "feedforward_factor",
            "subsampling_channels",
            "shared_layers",
        )
        _require(
            self.width % self.heads == 0,
            "encoder.heads",
            self.heads,
            f"must divide encoder.width = {self.width}",
        )
        _require(
            self.attention == "relative" or self.width // self.heads % 2 == 0,
            "encoder.heads",
            self.heads,
            f"rotary attention needs an even encoder.width / encoder.heads, {self.width} wide",
        )
        _require(
            self.kernel_frames > 0 and self.kernel_frames % 2 == 1,
            "encoder.kernel_frames",
            self.kernel_frames,
            "must be positive and odd",
        )
        _require_not_negative(self, "encoder", "residual_rank")
        _require(
            # Whoever reads the file tells that this is not an integer.
            not isinstance(self.layers, int) or self.layers % self.shared_layers == 0,
            "encoder.shared_layers",
            self.shared_layers,
            f"must divide encoder.layers = {self.layers}",
        )
        _require(
            self.residual_rank <= self.width,
            "encoder.residual_rank",
            self.residual_rank,
            f"must be at most encoder.width = {self.width}",
        )
        _require(
            self.residual_rank == 0 or self.shared_layers > 1,
            "encoder.residual_rank",
            self.residual_rank,
            "adds to matrices that blocks share, and encoder.shared_layers is 1",
        )
        _require_dropout(self, "encoder")
        _require_numbers(
            self, "encoder", "layer_drop", holds=lambda x: 0 <= x <= 1, rule="must lie in 0..1"
        )
        _require(
            len(self.context_frames) in (0, 2) and all(n >= 0 for n in self.context_frames),
            "encoder.context_frames",
            self.context_frames,
            "needs two numbers, frames before and after, not negative; or none",
        )
        _require(
            not (self.context_frames and self.chunk_ms),
            "encoder.context_frames",
            self.context_frames,
            "must be empty where encoder.chunk_ms says what is seen",
        )
        _require(
            not self.chunk_ms or any(self.chunk_ms),
            "encoder.chunk_ms",
            self.chunk_ms,
            "needs a size besides 0, or none at all",
        )
        _require_not_negative(self, "encoder", "left_chunks")


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """The network over the labels emitted so far."""

    kind: Literal["stateless", "lstm"] = "stateless"
    """stateless: embedding and a convolution over the last context labels (arXiv 2109.07513)."""
    context: int = 2
    """Labels that the stateless predictor sees."""
    embedding_width: int = 320
    """Width of the label embedding."""
    width: int = 320
    """Width of the predictor's output (lstm: of its state)."""
    dropout: float = 0.1
    """Probability of dropping, on the embedding (lstm: and on the output)."""

    def __post_init__(self) -> None:
        _require_positive(self, "predictor", "context", "embedding_width", "width")
        _require_dropout(self, "predictor")


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """activation(encoded + predicted) @ kernel + bias."""

    width: int = 320
    """Both sides are projected to it."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the sum and the output layer."""
    chunk_frames: int | None = None
    """Frames per scanned, rematerialised chunk of joint and loss; None chooses."""

    def __post_init__(self) -> None:
        _require_positive(self, "joint", "width", "chunk_frames")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The network of objective.kind attention: a Transformer over the labels emitted so far that
    attends to the encoded frames (arXiv 1706.03762)."""

    layers: int = 6
    """Blocks."""
    width: int = 256
    """Model dimension."""
    heads: int = 4
    """Attention heads."""
    feedforward_factor: int = 4
    """Inner width of the feed-forward modules, as a multiple of width."""
    dropout: float = 0.1
    """Probability of dropping, on the embedding and in every residual branch."""

    def __post_init__(self) -> None:
        _require_positive(self, "decoder", "layers", "width", "heads", "feedforward_factor")
        _require_dropout(self, "decoder")
        _require(
            self.width % (2 * self.heads) == 0,
            "decoder.heads",
            self.heads,
            f"decoder.width / decoder.heads must be an even number, and the width is {self.width}",
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learned, and with it which networks stand behind the encoder (docs/models.md)."""

    kind: Literal["transducer", "tdt", "hat", "ctc", "attention", "language_model"] = "transducer"
    """transducer (arXiv 1211.3711); tdt: one whose symbols last for several frames (2304.06795);
    hat: one whose blank is a decision of its own (2003.07705); ctc: no more than a linear layer;
    attention: a decoder that attends to all frames (1508.01211); language_model: a predictor of the
    next piece, without encoder and audio, which fusion adds to a recogniser (docs/decoding.md)."""
    ctc_weight: float = 0.0
    """Weight of a CTC head beside the objective; 0 for none. Of no effect with kind ctc."""
    intermediate_ctc_weight: float = 0.0
    """Weight of the same CTC head's loss on what the block in the middle makes (arXiv 2102.03216);
    0 for none."""
    consistency_weight: float = 0.0
    """Weight of the divergence between the CTC head's posteriors of two views of each utterance,
    masked apart (CR-CTC, arXiv 2410.05101), all losses being means of both; 0 for one view."""
    fastemit_lambda: float = 0.0
    """transducer, hat: by how much more labels are wanted than blanks, early (arXiv 2010.11148)."""
    durations: tuple[int, ...] = (0, 1, 2, 3, 4)
    """tdt: the numbers of frames that a symbol may last for."""
    sigma: float = 0.05
    """tdt: nats that every symbol costs, so that long durations are preferred."""
    label_smoothing: float = 0.1
    """attention: share of the target that is spread over all labels (arXiv 1512.00567)."""

    def __post_init__(self) -> None:
        _require_numbers(
            self,
            "objective",
            *("ctc_weight", "intermediate_ctc_weight", "consistency_weight"),
            *("fastemit_lambda", "sigma"),
            holds=lambda x: 0 <= x < math.inf,
            rule="must be finite, >= 0",
        )
        for name in ("intermediate_ctc_weight", "consistency_weight"):
            _require(
                not getattr(self, name) or self.has_ctc_head,
                f"objective.{name}",
                getattr(self, name),
                "needs a CTC head: objective.kind = 'ctc', or objective.ctc_weight > 0",
            )
        _require_numbers(
            self,
            "objective",
            "label_smoothing",
            holds=lambda x: 0 <= x < 1,
            rule="must lie in 0..1, below 1",
        )
        durations = self.durations
        _require(
            durations[:2] == (0, 1) and all(a < b for a, b in zip(durations, durations[1:])),
            "objective.durations",
            durations,
            "must begin with 0 and 1, so that any labels fit any frames, and increase",
        )

    @property
    def has_ctc_head(self) -> bool:
        return self.kind == "ctc" or self.ctc_weight > 0

    @property
    def is_language_model(self) -> bool:
        return self.kind == "language_model"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Linear warm-up, cosine decay, clipping, averaging."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon (arXiv 2502.16982): orthogonalised momentum for the matrices inside the networks, AdamW
    for the rest. Learns the small corpora in half the steps."""
    peak_learning_rate: float = 1e-3
    """Reached at the end of the warm-up."""
    warmup_steps: int = 1000
    """Steps of linear rise."""
    final_learning_rate_ratio: float = 0.01
    """Where the cosine ends, as a share of the peak."""
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-9
    weight_decay: float = 0.01
    """On matrices and convolutions, not on biases, norms or embeddings (muon: on its own only)."""
    clip_norm: float = 1.0
    """Global norm that gradients are clipped to."""
    ema_decay: float = 0.999
    """Decay per step of the averaged parameters, which evaluation uses; 0: no averaging."""
    frozen: tuple[str, ...] = ()
    """Parameters that keep their bits, by patterns of their names: encoder.* or, of the blocks
    numbered from 0, encoder.blocks.[0-3].* (docs/finetuning.md)."""

    def __post_init__(self) -> None:
        check = functools.partial(_require_numbers, self, "optimizer")
        check(
            "peak_learning_rate",
            holds=lambda x: 0 < x < math.inf,
            rule="must be positive and finite",
        )
        check("epsilon", holds=lambda x: 0 < x < math.inf, rule="must be positive and finite")
        check("final_learning_rate_ratio", holds=lambda x: 0 <= x <= 1, rule="must lie in 0..1")
        check(
            *("beta1", "beta2", "ema_decay"),
            holds=lambda x: 0 <= x < 1,
            rule="must lie in 0..1, below 1",
        )
        _require_positive(self, "optimizer", "clip_norm")
        _require_not_negative(self, "optimizer", "warmup_steps", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How the devices are arranged. data * fsdp * model must be the number of devices; of a
    processor without accelerator as many are made."""

    data: int = -1
    """Copies of the model, each on its share of the batch; -1: all devices that are left (of a
    processor without accelerator: one)."""
    fsdp: int = 1
    """Devices over which parameters and optimizer state are split, and the batch too."""
    model: int = 1
    """Devices over which the widths of large matrices are split."""

    def __post_init__(self) -> None:
        _require_positive(self, "mesh", "fsdp", "model")
        _require(
            self.data == -1 or self.data > 0, "mesh.data", self.data, "must be positive, or -1"
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop."""

    steps: int = 100_000
    """Steps until the end of the learning-rate schedule, and of training."""
    seed: int = 0
    """Of initialisation, data order, augmentation and dropout."""
    accumulate: int = 1
    """Micro-batches that a batch is split into, one after the other."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations; parameters, optimizer state and the lattice stay float32."""
    log_every_steps: int = 20
    """Steps from one line of metrics.jsonl to the next."""
    wandb_project: str = ""
    """Project of Weights & Biases that the figures go to as well; empty: none."""
    evaluate_every_steps: int = 1000
    """Steps from one WER, or perplexity, on dev to the next; the last step is always evaluated."""
    max_skipped_in_a_row: int = 10
    """Consecutive steps with a non-finite loss or gradient after which the run has diverged."""
    divergence_factor: float = 5.0
    """It has too when the mean loss of some hundred steps is that many times its lowest so far."""
    rollbacks: int = 0
    """Times that a run which diverged goes back to its last good checkpoint, and on with the data
    that comes next; after these it stops."""
    rollback_learning_rate_factor: float = 0.5
    """What the learning rate is multiplied by at each of them."""

    def __post_init__(self) -> None:
        _require_positive(
            self,
            "train",
            "steps",
            "accumulate",
            "log_every_steps",
            "evaluate_every_steps",
            "max_skipped_in_a_row",
        )
        _require_not_negative(self, "train", "seed", "rollbacks")
        check = functools.partial(_require_numbers, self, "train")
        check("seed", holds=lambda x: x < 2**63, rule="must be below 2^63")
        check("divergence_factor", holds=lambda x: x > 1, rule="must be above 1")
        check("rollback_learning_rate_factor", holds=lambda x: 0 < x <= 1, rule="must lie in 0..1")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept on disk."""

    every_steps: int = 1000
    """Steps from one checkpoint to the next; the last step is always saved."""
    keep: int = 3
    """Newest checkpoints kept, beside the best by WER, or perplexity, on dev."""
    directory: str = ""
    """Folder or bucket (gs://BUCKET/RUN) that holds them; empty: the run directory."""

    def __post_init__(self) -> None:
        _require_positive(self, "checkpoint", "every_steps", "keep")


@dataclass(frozen=True, kw_only=True)
class DecodingConfig:
    """How labels are searched for."""

    head: Literal["objective", "ctc"] = "objective"
    """What to search with: the objective's own networks, or the CTC head beside them."""
    max_symbols_per_frame: int = 5
    """Bound on the labels emitted at one frame (not of CTC, which emits one at most)."""
    beam: int = 0
    """Label sequences that a beam search keeps; 0: greedy search. For transducer, HAT and
    attention."""
    ctc_weight: float = 0.0
    """attention: share of the CTC head in the score of a label sequence (arXiv 1609.06773)."""
    chunk_ms: float = 0.0
    """Recognises as in streaming, by chunks of this size (see encoder.chunk_ms); 0: whole
    utterances."""
    window_seconds: float = 40.0
    """Longer recordings are recognised in windows of this length, which overlap by 4 s, and joined;
    0: whole, however long. The default leaves LibriSpeech's whole. Without an effect on attention
    without a CTC head, which knows no times."""

    def __post_init__(self) -> None:
        _require_numbers(
            self,
            "decoding",
            "window_seconds",
            holds=lambda x: x == 0 or x >= 6,
            rule="must be at least 6, or 0",
        )
        _require_positive(self, "decoding", "max_symbols_per_frame")
        _require_not_negative(self, "decoding", "beam")
        _require_numbers(
            self,
            "decoding",
            "ctc_weight",
            holds=lambda x: 0 <= x < 1,
            rule="must lie in 0..1, below 1; for CTC alone there is decoding.head",
        )


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
        if not all(is_dataclass(getattr(self, f.name)) for f in fields(self)):
            return  # Whoever reads the file tells what is no section.
        for utterances in self.data.bucket_utterances:
            _require(
                utterances % self.train.accumulate == 0,
                "train.accumulate",
                self.train.accumulate,
                f"must divide every data.bucket_utterances, also {utterances}",
            )
        if self.objective.kind == "language_model":
            rule = "a language model has none; its perplexity is that of data.dev"
            for name, value in [
                ("objective.ctc_weight", self.objective.ctc_weight),
                ("data.test", self.data.test),
            ]:
                _require(not value, name, value, rule)
        _require(
            not self.objective.intermediate_ctc_weight or self.encoder.layers > 1,
            "objective.intermediate_ctc_weight",
            self.objective.intermediate_ctc_weight,
            "needs an encoder with a block before the last, and encoder.layers is 1",
        )
        _require(
            self.decoding.head == "objective" or self.objective.has_ctc_head,
            "decoding.head",
            self.decoding.head,
            f"objective.kind = {self.objective.kind!r} has no CTC head: objective.ctc_weight is 0",
        )
        _require(
            not self.decoding.beam
            or (
                self.decoding.head == "objective"
                and self.objective.kind in ("transducer", "hat", "attention")
            ),
            "decoding.beam",
            self.decoding.beam,
            f"there is no beam search for objective.kind = {self.objective.kind!r}, "
            f"decoding.head = {self.decoding.head!r}: only for transducer, hat and attention",
        )
        _require(
            not self.decoding.ctc_weight
            or (self.objective.kind == "attention" and self.objective.has_ctc_head),
            "decoding.ctc_weight",
            self.decoding.ctc_weight,
            "needs objective.kind = 'attention' and a CTC head beside it, objective.ctc_weight > 0",
        )
        for size in self.encoder.chunk_ms:
            self._require_whole_frames("encoder.chunk_ms", size)
        self._require_whole_frames("decoding.chunk_ms", self.decoding.chunk_ms)
        _require(
            not self.decoding.chunk_ms or bool(self.encoder.chunk_ms),
            "decoding.chunk_ms",
            self.decoding.chunk_ms,
            "needs an encoder trained with encoder.chunk_ms",
        )
        _require(
            not self.encoder.chunk_ms or self.features.normalization == "none",
            "encoder.chunk_ms",
            self.encoder.chunk_ms,
            "needs features.normalization = 'none': a stream is not known as a whole",
        )

    def _require_whole_frames(self, name: str, chunk_ms: float) -> None:
        frame_ms = self.encoder.subsampling_factor * self.features.hop_ms
        _require(
            0 <= chunk_ms < math.inf and chunk_frames(chunk_ms, self) * frame_ms == chunk_ms,
            name,
            chunk_ms,
            f"must be a multiple of the encoder's frame of {frame_ms:g} ms",
        )


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
