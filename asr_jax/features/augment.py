"""Augmentation of features on the device: time stretching and SpecAugment."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Key


def time_stretch(
    features: Float32[Array, "B T F"],
    lengths: Int32[Array, " B"],
    tempo: Float32[Array, " B"],
    *,
    frames: int,
) -> tuple[Float32[Array, "B frames F"], Int32[Array, " B"]]:
    """Change the tempo by linear interpolation along time, at the same pitch.

    Output frame t is the input at position tempo * (t + 1/2) - 1/2, clipped to the utterance:
    frame centers scale as time does. A tempo of exactly 1 changes no bit.

    Args:
        features: frames; padding is not read.
        lengths: real frames of each row.
        tempo: positive factor, above 1 for faster; ignored where the length is 0.
        frames: frames of the result; longer results are cut.

    Returns:
        Features, with zeros as padding; and the lengths, floor(length / tempo + 1/2), at most
        `frames` and at least 1 for a row with a frame.
    """
    tempo = jnp.where(lengths > 0, tempo, 1)
    stretched = jnp.floor(lengths / tempo + 0.5).astype(jnp.int32)
    stretched = jnp.clip(stretched, jnp.minimum(lengths, 1), frames)
    time = jnp.arange(frames)
    last = jnp.maximum(lengths - 1, 0)[:, None]
    position = jnp.clip(tempo[:, None] * (time + 0.5) - 0.5, 0, last)
    left = position.astype(jnp.int32)
    right = jnp.minimum(left + 1, last)
    fraction = (position - left)[..., None]

    def at(index: Int32[Array, "B frames"]) -> Float32[Array, "B frames F"]:
        return jnp.take_along_axis(features, index[..., None], axis=1, mode="promise_in_bounds")

    mixed = (1 - fraction) * at(left) + fraction * at(right)
    return jnp.where((time < stretched[:, None])[..., None], mixed, 0), stretched


def spec_augment(
    features: Float32[Array, "B T F"],
    lengths: Int32[Array, " B"],
    key: Key[Array, ""],
    *,
    frequency_masks: int,
    frequency_mask_bins: int,
    time_masks: int,
    time_mask_fraction: float,
) -> Float32[Array, "B T F"]:
    """Set bands to 0: SpecAugment without warping (arXiv 1904.08779; fraction: 1912.05533).

    Widths are uniform over 0 ... widest, positions over all that fit; masks may overlap. Row i's
    masks depend only on `key`, i, its length and F, not on padding or other rows.

    Args:
        features: normalized features, so that 0 is their mean.
        lengths: real frames of each row, to which time masks are limited.
        frequency_masks: number per row.
        frequency_mask_bins: widest frequency mask.
        time_masks: number per row.
        time_mask_fraction: widest time mask as a fraction of the row's length, rounded down to
            frames.

    Raises:
        ValueError: frequency_mask_bins exceeds the mel bins.
    """
    rows, frames, bins = features.shape
    if frequency_mask_bins > bins:
        raise ValueError(f"{frequency_mask_bins=} must be at most the {bins} mel bins of features")

    def masks(row: Int32[Array, ""], length: Int32[Array, ""]) -> Bool[Array, "T F"]:
        draws = jax.random.uniform(
            jax.random.fold_in(key, row), (2, frequency_masks + time_masks, 1)
        )
        over_frequency, over_time = draws[:, :frequency_masks], draws[:, frequency_masks:]
        widest_frames = jnp.floor(time_mask_fraction * length)
        return _bands(over_time, frames, length, widest=widest_frames)[:, None] | _bands(
            over_frequency, bins, bins, widest=frequency_mask_bins
        )

    return jnp.where(jax.vmap(masks)(jnp.arange(rows), lengths), 0, features)


def _bands(
    draws: Float32[Array, "2 masks 1"],
    size: int,
    length: int | Int32[Array, ""],
    *,
    widest: int | Float32[Array, ""],
) -> Bool[Array, " size"]:
    """Mark the union of bands within 0 ... length - 1 of an axis, by draws uniform in [0, 1)."""
    width = jnp.floor(draws[0] * (widest + 1))
    start = jnp.floor(draws[1] * (length - width + 1))
    index = jnp.arange(size)
    return jnp.any((start <= index) & (index < start + width), axis=0)
