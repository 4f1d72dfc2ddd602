"""The operations of a training step, the measure of its speed on a device."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from asr_jax.config import Config, EncoderConfig, chunk_frames
from asr_jax.features.frames import frame_count
from asr_jax.layers.length import subsampled
from asr_jax.models.encoder import left_chunks


class Sizes(NamedTuple):
    """Lengths of a batch's utterances, [rows], and their sums."""

    feature_frames: np.ndarray
    frames: np.ndarray
    """Frames that the encoder returns."""
    cells: np.ndarray
    """Label positions: labels + 1."""
    frame_sum: int
    cell_sum: int
    pair_sum: int
    """Pairs of a frame and a frame that it attends to."""


# Operations per multiplication of the forward pass: two with its addition, and two more each for
# the gradients of parameters and of inputs.
TRAINED, WITHOUT_INPUT_GRADIENT = 6, 4
# Lengths for which the operations of an utterance are counted.
KNOTS = 64


def model_flops(
    config: Config,
    vocabulary_size: int,
    *,
    rows: int,
    seconds: float | Sequence[float] | np.ndarray,
    labels: int | Sequence[int] | np.ndarray,
) -> dict[str, int]:
    """Return the floating-point operations of one forward and backward pass, by part of the model.

    The count covers the multiplications and additions (two operations) of matrix products and
    convolutions: once forward and twice backward, for the gradients of inputs and of parameters
    (features and sinusoids have no gradient). The joint counts its real cells, frames times
    labels + 1 of each utterance. Relative attention counts one score by position for each pair of
    frames.

    The count leaves out what the definition does not need: padding (unless `seconds` and `labels`
    include it), recomputation, and scores of distances that no pair of frames has. It also leaves
    out parts that are small compared with the products: features, augmentation, norms, activations,
    softmax, dropout, the lattice, the optimizer.

    Args:
        config: sizes of the model.
        vocabulary_size: vocabulary of the tokenizer, blank included.
        rows: utterances of the (global) batch.
        seconds: seconds of audio after changes of speed and tempo: one number for all rows (the
            bucket's limit counts its padding), or one per row.
        labels: labels of the transcript, one number or one per row.

    Returns:
        Operations by part; their sum is the step's total over all devices.
    """
    sizes = _sizes(config, rows, seconds, labels)
    objective = config.objective
    flops = {
        "subsampling": _subsampling(config, sizes),
        "feed-forward": _feedforward(config, sizes),
        "attention": _attention(config, sizes),
        "convolution": _convolution(config, sizes),
    }
    if objective.kind == "attention":
        flops["decoder"] = _decoder(config, sizes, vocabulary_size)
    elif objective.kind != "ctc":
        flops["predictor"] = _predictor(config, sizes)
        flops["joint and loss"] = _joint(config, sizes, vocabulary_size)
    if objective.has_ctc_head:
        flops["ctc"] = _ctc(config, sizes, vocabulary_size)
    return flops


def utterance_work(
    config: Config, vocabulary_size: int, *, labels_per_second: float = 0.0
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function of lengths in seconds: the operations of an utterance padded to each.

    They are those of `model_flops` without the joint's, which leaves padding out. They are
    interpolated between KNOTS lengths. For a language model they are the lengths themselves.
    """

    def operations(seconds: float) -> int:
        labels = round(seconds * labels_per_second)
        flops = model_flops(config, vocabulary_size, rows=1, seconds=seconds, labels=labels)
        return max(1, sum(flops.values()) - flops.get("joint and loss", 0))

    def work(seconds: np.ndarray) -> np.ndarray:
        if config.objective.is_language_model:
            return seconds
        knots = np.geomspace(seconds.min(), seconds.max(), KNOTS)
        return np.interp(seconds, knots, np.array([operations(knot) for knot in knots], float))

    return work


def _sizes(
    config: Config,
    rows: int,
    seconds: float | Sequence[float] | np.ndarray,
    labels: int | Sequence[int] | np.ndarray,
) -> Sizes:
    samples = np.rint(np.broadcast_to(seconds, rows) * config.features.sample_rate_hz).astype(int)
    cells = np.broadcast_to(labels, rows).astype(np.int64) + 1
    if config.objective.consistency_weight:  # two views of every utterance
        samples, cells = np.repeat(samples, 2), np.repeat(cells, 2)
    feature_frames = frame_count(samples, config.features)
    encoder = config.encoder
    lead = encoder.subsampling_lead
    frames = subsampled(feature_frames, encoder.subsampling_factor, lead=lead)
    pair_sum = sum(_pairs(int(n), config) for n in frames)
    sums = int(frames.sum()), int(cells.sum()), pair_sum
    return Sizes(feature_frames, frames, cells, *sums)


def _subsampling(config: Config, sizes: Sizes) -> int:
    """Return the operations of the convolutions and of the projection to the encoder's width.

    The inputs of the first convolution are features, which have no gradient.
    """
    encoder, bins = config.encoder, config.features.mel_bins
    channels, factor = encoder.subsampling_channels, encoder.subsampling_factor
    is_1d = encoder.subsampling == "conv1d"

    def after(length, stride: int):
        return subsampled(length, stride, lead=stride - 1 if encoder.subsampling_lead else 0)

    first_taps = 3 * bins if is_1d else 9 * after(bins, 2)
    first = int(after(sizes.feature_frames, 2).sum()) * first_taps * channels
    others = sizes.frame_sum * (1 if is_1d else after(bins, factor)) * channels * encoder.width
    for stride in (4, 8)[: factor // 4]:
        frames = int(after(sizes.feature_frames, stride).sum())
        if is_1d:
            others += frames * 3 * channels * channels
        else:
            of_channel = 9 + channels if encoder.subsampling == "separable" else 9 * channels
            others += frames * after(bins, stride) * of_channel * channels
    return WITHOUT_INPUT_GRADIENT * first + TRAINED * others


def _matrix(encoder: EncoderConfig, inputs: int, outputs: int) -> int:
    return inputs * outputs + encoder.residual_rank * (inputs + outputs)


def _feedforward(config: Config, sizes: Sizes) -> int:
    encoder = config.encoder
    inner = encoder.feedforward_factor * encoder.width
    products = _matrix(encoder, encoder.width, inner) + _matrix(encoder, inner, encoder.width)
    modules = 2 if encoder.kind == "conformer" else 1
    return TRAINED * encoder.layers * sizes.frame_sum * modules * products


def _attention(config: Config, sizes: Sizes) -> int:
    """Return the operations of attention; if it is relative, include the scores by position."""
    encoder, width = config.encoder, config.encoder.width
    square = _matrix(encoder, width, width)
    products, of_distances = 4 * sizes.frame_sum * square + 2 * sizes.pair_sum * width, 0
    if encoder.attention == "relative":
        products += sizes.pair_sum * width
        of_distances = _distances(int(sizes.frames.max()), config) * square  # of sinusoids
    return encoder.layers * (TRAINED * products + WITHOUT_INPUT_GRADIENT * of_distances)


def _convolution(config: Config, sizes: Sizes) -> int:
    encoder, width = config.encoder, config.encoder.width
    if encoder.kind != "conformer":
        return 0
    pointwise = _matrix(encoder, width, 2 * width) + _matrix(encoder, width, width)
    products = pointwise + encoder.kernel_frames * width
    return TRAINED * encoder.layers * sizes.frame_sum * products


def _decoder(config: Config, sizes: Sizes, vocabulary_size: int) -> int:
    """Return the operations of the attention decoder and its output layer."""
    decoder = config.decoder
    of_cell = (6 + 2 * decoder.feedforward_factor) * decoder.width
    pairs = 2 * int((sizes.cells * (sizes.cells + sizes.frames)).sum())
    of_layer = sizes.cell_sum * of_cell + 2 * sizes.frame_sum * config.encoder.width + pairs
    products = decoder.layers * of_layer + sizes.cell_sum * vocabulary_size
    return TRAINED * decoder.width * products


def _predictor(config: Config, sizes: Sizes) -> int:
    predictor = config.predictor
    if predictor.kind == "stateless":
        products = predictor.context * predictor.embedding_width * predictor.width
    else:
        inputs = predictor.embedding_width + (predictor.layers - 1) * predictor.width
        products = 4 * predictor.width * (inputs + predictor.layers * predictor.width)
    return TRAINED * sizes.cell_sum * products


def _joint(config: Config, sizes: Sizes, vocabulary_size: int) -> int:
    """Return the operations of the joint's projections, and of its output layer in every cell."""
    objective = config.objective
    columns = vocabulary_size + (len(objective.durations) if objective.kind == "tdt" else 0)
    lattice = int((sizes.frames * sizes.cells).sum()) * columns
    projections = sizes.frame_sum * config.encoder.width + sizes.cell_sum * config.predictor.width
    return TRAINED * (projections + lattice) * config.joint.width


def _ctc(config: Config, sizes: Sizes, vocabulary_size: int) -> int:
    heads = 1 + (config.objective.intermediate_ctc_weight > 0)
    return TRAINED * heads * sizes.frame_sum * config.encoder.width * vocabulary_size


def _pairs(frames: int, config: Config) -> int:
    """Count the pairs of a frame and a frame that it sees, averaged over chunk sizes."""
    encoder, number = config.encoder, np.arange(frames)
    if encoder.context_frames:
        before, after = encoder.context_frames
        seen = np.minimum(number, before) + np.minimum(frames - 1 - number, after) + 1
        return int(seen.sum())
    pairs = []
    for size in (chunk_frames(ms, config) or frames for ms in encoder.chunk_ms or (0.0,)):
        start = number // size * size
        left = int(left_chunks(encoder, size)) * size
        seen = np.minimum(start + size, frames) - np.maximum(start - left, 0)
        pairs.append(int(seen.sum()))
    return sum(pairs) // len(pairs)


def _distances(frames: int, config: Config) -> int:
    if config.encoder.context_frames:
        return sum(min(n, frames - 1) for n in config.encoder.context_frames) + 1
    return 2 * frames - 1
