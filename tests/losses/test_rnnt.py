"""rnnt_loss compared with its definition, and with the written-out float64 lattice.

All tests share one padded shape, which saves compilations.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.losses import _reference, rnnt_loss

ROWS, FRAMES, LABELS, VOCABULARY = 6, 6, 5, 4
SIZES = [(1, 0), (1, 3), (4, 0), (3, 2), (2, 5), (6, 3)]  # frames and labels, including U > T


def draw(frames, labels, vocabulary=VOCABULARY, seed=0):
    """Return logits and labels of one utterance; blank is the last symbol."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(frames, labels + 1, vocabulary)) * 2
    return logits.astype(np.float32), rng.integers(0, vocabulary - 1, labels)


def pad(utterances, padding=0.0, padding_label=0):
    vocabulary = utterances[0][0].shape[-1]
    logits = np.full((ROWS, FRAMES, LABELS + 1, vocabulary), padding, np.float32)
    labels = np.full((ROWS, LABELS), padding_label, np.int32)
    lengths = np.zeros((2, ROWS), np.int32)
    for b, (row, symbols) in enumerate(utterances):
        logits[b, : len(row), : len(symbols) + 1], labels[b, : len(symbols)] = row, symbols
        lengths[:, b] = len(row), len(symbols)
    return tuple(jnp.asarray(x) for x in (logits, labels, *lengths))


@jax.jit
def losses_and_gradients(logits, *rest):
    def total(logits):
        losses = rnnt_loss(logits, *rest, blank_id=logits.shape[-1] - 1)
        return losses.sum(), losses

    gradients, losses = jax.grad(total, has_aux=True)(logits)
    return losses, gradients


def check(utterances, batch, rtol=2e-6):
    """Compare with the reference; padding must have no gradient."""
    losses, gradients = jax.tree.map(np.array, losses_and_gradients(*batch))
    for b, (logits, labels) in enumerate(utterances):
        blank_id = logits.shape[-1] - 1
        loss, gradient = _reference.loss_and_gradient(logits, labels, blank_id)
        own = gradients[b, : len(logits), : len(labels) + 1]
        np.testing.assert_allclose(losses[b], loss, rtol=rtol)
        np.testing.assert_allclose(own, gradient, atol=3e-6)
        own[...] = 0
    assert not gradients.any()


@pytest.mark.parametrize("vocabulary", [2, VOCABULARY])
def test_loss_is_the_sum_over_all_alignments_with_its_gradient(vocabulary):
    utterances = [draw(*size, vocabulary, seed) for seed, size in enumerate(SIZES)]
    batch = pad(utterances)
    losses, _ = losses_and_gradients(*batch)
    want = [_reference.enumerated_loss(*x, vocabulary - 1) for x in utterances]
    np.testing.assert_allclose(losses, want, rtol=2e-6)
    check(utterances, batch)


def test_loss_computed_by_hand():
    # Two frames, one label, all symbols equally likely: two alignments of three edges each.
    losses, _ = losses_and_gradients(*pad([(np.zeros((2, 2, VOCABULARY)), [1])]))
    np.testing.assert_allclose(losses[0], -np.log(2 / VOCABULARY**3), rtol=1e-6)


def test_the_written_out_lattice_is_the_definition():
    """The loss equals the definition, and the gradient finite differences, in float64."""
    for size in [(3, 2), (2, 3)]:
        logits, labels = draw(*size)
        loss, gradient = _reference.loss_and_gradient(logits, labels, 3)
        np.testing.assert_allclose(loss, _reference.enumerated_loss(logits, labels, 3), rtol=1e-12)
        step = 1e-5
        for index in np.ndindex(logits.shape):
            nudge = np.zeros(logits.shape)
            nudge[index] = step
            up, down = (
                _reference.enumerated_loss(x, labels, 3) for x in (logits + nudge, logits - nudge)
            )
            np.testing.assert_allclose(gradient[index], (up - down) / (2 * step), atol=1e-9)


def test_logits_may_be_shifted_in_every_cell():
    logits, labels = draw(6, 3)
    shift = np.random.default_rng(1).normal(size=(6, 4, 1)) * 10
    losses, gradients = losses_and_gradients(*pad([(logits, labels), (logits + shift, labels)]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=3e-6)
    # Logits of about 30 have five bits less precision than logits of about 1.
    np.testing.assert_allclose(gradients[1], gradients[0], atol=2e-5)


def test_symbols_excluded_by_minus_infinity():
    logits, labels = draw(4, 2)
    logits[..., 0] = -np.inf
    utterance = logits, np.maximum(labels, 1)
    check([utterance], pad([utterance]))


@pytest.mark.parametrize("padding", [np.nan, np.inf, -np.inf, 1e30])
def test_padding_content_never_matters(padding):
    utterances = [draw(*size, seed=seed) for seed, size in enumerate(SIZES)]
    check(utterances, pad(utterances, padding, padding_label=-99999))
    check(utterances, pad(utterances, padding, padding_label=99999))


def test_no_alignment_is_inf_with_zero_gradient():
    """Zero frames, or lengths beyond the axes; other utterances of the batch are unaffected."""
    good = draw(FRAMES, LABELS)
    logits, labels, _, _ = pad([good] * ROWS)
    frames = jnp.array([FRAMES, 0, 0, FRAMES + 1, -1, FRAMES])
    label_lengths = jnp.array([LABELS, 0, 2, LABELS, 1, LABELS + 1])
    batch = logits, labels, frames, label_lengths
    check([good], batch)
    assert np.isinf(losses_and_gradients(*batch)[0][1:]).all()
    losses, gradients = losses_and_gradients(logits, labels, frames, label_lengths.at[5].set(-1))
    assert losses[5] == np.inf and not gradients[5].any()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_lower_precision_is_only_that_of_the_input(dtype):
    logits, *rest = pad([draw(FRAMES, LABELS, seed=b) for b in range(ROWS)])
    rounded = logits.astype(dtype)
    losses, gradients = losses_and_gradients(rounded, *rest)
    want_losses, want_gradients = losses_and_gradients(rounded.astype(jnp.float32), *rest)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
    np.testing.assert_array_equal(gradients, want_gradients.astype(dtype))
