"""Laws of time stretching and SpecAugment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.features.augment import spec_augment, time_stretch

SPEC = dict(frequency_masks=2, frequency_mask_bins=7, time_masks=3, time_mask_fraction=0.1)

augmented = jax.jit(spec_augment, static_argnames=tuple(SPEC))
stretched_to = jax.jit(time_stretch, static_argnames="frames")


def padded(recordings, frames, padding=0.0):
    features = np.full((len(recordings), frames, recordings[0].shape[1]), padding, np.float32)
    for row, recording in zip(features, recordings):
        row[: len(recording)] = recording
    lengths = jnp.array([len(r) for r in recordings], jnp.int32)
    return jnp.asarray(features), lengths


def random_features(*lengths, bins=5):
    """Return features without zeros, so that masks are visible."""
    rng = np.random.default_rng(0)
    return [1 + rng.random((n, bins), np.float32) for n in lengths]


def stretch(recordings, tempo, *, frames, padding=0.0, to=40):
    features, lengths = padded(recordings, to, padding)
    tempo = jnp.asarray(tempo, jnp.float32)
    return map(np.asarray, stretched_to(features, lengths, tempo, frames=frames))


def test_stretching_is_interpolation_at_scaled_frame_centers():
    recordings = random_features(40, 31, 7, 1, 2)
    tempos = [0.8, 1.25, 1.1, 0.5, 3.0]
    stretched, lengths = stretch(recordings, tempos, frames=60)
    for recording, tempo, row, length in zip(recordings, tempos, stretched, lengths):
        assert length == max(1, int(len(recording) / tempo + 0.5))
        centers = np.arange(len(recording)) + 0.5
        wanted = tempo * (np.arange(length) + 0.5)
        for bin_, values in enumerate(recording.T):
            expected = np.interp(wanted, centers, values)
            np.testing.assert_allclose(row[:length, bin_], expected, atol=1e-5)
        assert not row[length:].any()


@pytest.mark.parametrize("frames", [20, 40, 50])
def test_tempo_one_changes_no_bit(frames):
    recordings = random_features(40, 31, 1)
    stretched, lengths = stretch(recordings, [1, 1, 1], frames=frames)
    expected, _ = padded([r[:frames] for r in recordings], frames)
    assert lengths.tolist() == [min(len(r), frames) for r in recordings]
    np.testing.assert_array_equal(stretched, expected)


def test_stretching_never_reads_padding():
    recordings, tempos = random_features(30, 17, 1), [0.7, 1.3, 2.0]
    expected, expected_lengths = stretch(recordings, tempos, frames=50)
    stretched, lengths = stretch(recordings, tempos, frames=50, padding=np.nan, to=64)
    np.testing.assert_array_equal(stretched, expected)
    np.testing.assert_array_equal(lengths, expected_lengths)


def test_empty_rows_stay_empty_whatever_their_tempo():
    recordings = random_features(0, 3, 0)
    stretched, lengths = stretch(recordings, [0, 1, 2], frames=8, padding=np.nan)
    assert lengths.tolist() == [0, 3, 0]
    assert not stretched[[0, 2]].any()


def augment(recordings, seed=0, *, frames=100, **changes):
    features, lengths = padded(recordings, frames)
    return np.asarray(augmented(features, lengths, jax.random.key(seed), **(SPEC | changes)))


def test_masks_are_bands_of_bounded_width():
    """One mask of each kind over many rows takes every width from 0 to the widest."""
    recordings = random_features(*[60] * 500, bins=20)
    masked = augment(recordings, frequency_masks=1, time_masks=1) == 0
    real = masked[:, :60]
    for axis, widest in ((1, 7), (2, 6)):
        bands = real.all(axis=axis)
        edges = np.diff(np.pad(bands, ((0, 0), (1, 1))).astype(int), axis=1)
        assert ((edges == 1).sum(axis=1) <= 1).all()
        counts = np.bincount(bands.sum(axis=1), minlength=widest + 1)
        assert len(counts) == widest + 1
        # 500 rows over at most 8 widths: 62.5 each, standard deviation below 9.
        assert counts.min() > 25
        # Positions reach both ends.
        assert bands[:, 0].any() and bands[:, -1].any()


def test_several_masks_cover_at_most_the_sum_of_their_widths():
    recordings = random_features(*[60] * 50, bins=20)
    masked = augment(recordings)[:, :60] == 0
    bins, times = masked.all(axis=1), masked.all(axis=2)
    np.testing.assert_array_equal(masked, bins[:, None, :] | times[:, :, None])
    assert bins.sum(axis=1).max() <= 2 * 7
    assert 6 < times.sum(axis=1).max() <= 3 * 6


def test_unmasked_values_keep_every_bit():
    recordings = random_features(60, 40, 100, bins=20)
    features, _ = padded(recordings, 100)
    result = augment(recordings)
    assert (result != features).any()
    np.testing.assert_array_equal(result, np.where(result == 0, 0, features))


@pytest.mark.parametrize(
    "none",
    [
        dict(frequency_masks=0, time_masks=0),
        dict(frequency_mask_bins=0, time_mask_fraction=0.0),
    ],
)
def test_no_masks_are_the_identity(none):
    recordings = random_features(60, 0, 3, bins=20)
    np.testing.assert_array_equal(augment(recordings, **none), padded(recordings, 100)[0])


def test_masks_do_not_depend_on_padding_or_other_rows():
    recordings = random_features(60, 40, 80, bins=20)
    expected = augment(recordings)
    longer = augment(recordings, frames=150)
    np.testing.assert_array_equal(longer[:, :100], expected)
    assert not longer[:, 100:].any()
    others = [recordings[0], recordings[0], recordings[2], recordings[1]]
    np.testing.assert_array_equal(augment(others)[[0, 2]], expected[[0, 2]])


def test_time_masks_lie_within_the_utterance():
    lengths = [0, 1, 15, 60] * 50
    features = jnp.ones((200, 100, 20))
    only_time = SPEC | dict(frequency_masks=0, time_masks=5, time_mask_fraction=0.5)
    result = np.asarray(augmented(features, jnp.array(lengths), jax.random.key(0), **only_time))
    for row, length in zip(result, lengths):
        assert row[length:].all()
    assert not result[3::4, 59].all()


def test_rows_and_keys_draw_differently():
    recordings = random_features(*[60] * 8, bins=20)
    masks = augment(recordings) == 0
    assert len({mask.tobytes() for mask in masks}) == 8
    assert (masks != (augment(recordings, seed=1) == 0)).any(axis=(1, 2)).all()


def test_mask_wider_than_the_features_is_an_error():
    with pytest.raises(ValueError, match="frequency_mask_bins=7 must be at most the 5 mel bins"):
        augment(random_features(3))
