"""How many operations a training step must do: what its speed on a device is judged by."""

from collections.abc import Sequence

import numpy as np

from asr_jax.config import Config, chunk_frames
from asr_jax.features.frames import frame_count
from asr_jax.layers.length import halved, subsampled


def model_flops(
    config: Config,
    vocabulary_size: int,
    *,
    rows: int,
    seconds: float | Sequence[float] | np.ndarray,
    labels: int | Sequence[int] | np.ndarray,
) -> dict[str, int]:
    """Floating-point operations of one step's forward and backward pass, by part of the model.

    Counted are the multiplications and additions (two operations) of matrix products and
    convolutions: once forward, and twice backward, for the gradients of inputs and of parameters
    (features and sinusoids have none). Of the joint's lattice the cells that exist are counted,
    frames times labels + 1 of each utterance; of relative attention one score by position for each
    pair of frames.

    Not counted is what the definition does not need: padding (unless `seconds` and `labels` hold
    it), recomputation, scores by distances that no pair of frames has. Nor is what is small beside
    the products: features, augmentation, norms, activations, softmax, dropout, the lattice, the
    optimizer.

    Args:
        config: sizes of the model.
        vocabulary_size: of the tokenizer, blank included.
        rows: utterances of the (global) batch.
        seconds: of audio after changes of speed and tempo: a number for all rows (a bucket's edge
            counts its padding), or each row's own.
        labels: likewise.

    Returns:
        Operations by part; their sum is the step's, over all devices together.
    """
    encoder, predictor, joint = config.encoder, config.predictor, config.joint
    objective = config.objective
    samples = np.rint(np.broadcast_to(seconds, rows) * config.features.sample_rate_hz).astype(int)
    if objective.consistency_weight:
        samples = np.repeat(samples, 2)
        labels = np.repeat(np.broadcast_to(labels, rows), 2)
        rows *= 2
    given = frame_count(samples, config.features)
    frames = subsampled(given, encoder.subsampling_factor)
    cells = np.broadcast_to(labels, rows).astype(int) + 1
    frame_sum, cell_sum = int(frames.sum()), int(cells.sum())
    pair_sum = sum(_pairs(int(n), config) for n in frames)
    width, layers = encoder.width, encoder.layers

    bins, channels = config.features.mel_bins, encoder.subsampling_channels
    first_taps = 3 * bins if encoder.subsampling == "conv1d" else 9 * halved(bins)
    first = int(halved(given).sum()) * first_taps * channels
    others = 0
    for stride in (4, 8)[: encoder.subsampling_factor // 4]:
        made = int(subsampled(given, stride).sum())
        if encoder.subsampling == "conv1d":
            others += made * 3 * channels * channels
        else:
            of_channel = 9 + channels if encoder.subsampling == "separable" else 9 * channels
            others += made * subsampled(bins, stride) * of_channel * channels
    last_bins = (
        1 if encoder.subsampling == "conv1d" else subsampled(bins, encoder.subsampling_factor)
    )
    others += frame_sum * last_bins * channels * width

    def matrix(inputs: int, outputs: int) -> int:
        return inputs * outputs + encoder.residual_rank * (inputs + outputs)

    attention, by_distance = 4 * frame_sum * matrix(width, width) + 2 * pair_sum * width, 0
    if encoder.attention == "relative":
        attention += pair_sum * width
        by_distance = _distances(int(frames.max()), config) * matrix(width, width)

    if predictor.kind == "stateless":
        predicted = cell_sum * predictor.context * predictor.embedding_width * predictor.width
    else:
        predicted = cell_sum * 4 * predictor.width * (predictor.embedding_width + predictor.width)

    inner = encoder.feedforward_factor * width
    feedforward = matrix(width, inner) + matrix(inner, width)
    convolution = 0
    if encoder.kind == "conformer":
        feedforward *= 2
        pointwise = matrix(width, 2 * width) + matrix(width, width)
        convolution = pointwise + encoder.kernel_frames * width

    projections = frame_sum * width + cell_sum * predictor.width
    columns = vocabulary_size + (len(objective.durations) if objective.kind == "tdt" else 0)
    lattice = int((frames * cells).sum()) * columns
    products = {
        "subsampling": others,
        "feed-forward": layers * frame_sum * feedforward,
        "attention": layers * attention,
        "convolution": layers * frame_sum * convolution,
    }
    if objective.kind == "attention":
        decoder, cells = config.decoder, cells.astype(np.int64)
        of_cell = (6 + 2 * decoder.feedforward_factor) * decoder.width
        pairs = 2 * int((cells * (cells + frames)).sum())
        of_layer = cell_sum * of_cell + 2 * frame_sum * encoder.width + pairs
        products["decoder"] = decoder.width * (
            decoder.layers * of_layer + cell_sum * vocabulary_size
        )
    elif objective.kind != "ctc":
        products["predictor"] = predicted
        products["joint and loss"] = (projections + lattice) * joint.width
    if objective.has_ctc_head:
        heads = 1 + (objective.intermediate_ctc_weight > 0)
        products["ctc"] = heads * frame_sum * width * vocabulary_size
    # What is read here, features and sinusoids of distances, has no gradient.
    without_input_gradient = {"subsampling": first, "attention": layers * by_distance}
    return {
        part: 6 * count + 4 * without_input_gradient.get(part, 0)
        for part, count in products.items()
    }


def _pairs(frames: int, config: Config) -> int:
    """Pairs of a frame and one that it sees; of sizes of chunks that are drawn, the mean."""
    encoder, number = config.encoder, np.arange(frames)
    if encoder.context_frames:
        before, after = encoder.context_frames
        seen = np.minimum(number, before) + np.minimum(frames - 1 - number, after) + 1
        return int(seen.sum())
    pairs = []
    for size in (chunk_frames(ms, config) or frames for ms in encoder.chunk_ms or (0.0,)):
        start = number // size * size
        seen = np.minimum(start + size, frames) - np.maximum(start - encoder.left_chunks * size, 0)
        pairs.append(int(seen.sum()))
    return sum(pairs) // len(pairs)


def _distances(frames: int, config: Config) -> int:
    if config.encoder.context_frames:
        return sum(min(n, frames - 1) for n in config.encoder.context_frames) + 1
    return 2 * frames - 1
