"""Laws of the lattice's forward and backward variables."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.losses import _lattice

FRAMES, LABELS = 9, 6
LENGTHS = jnp.array([5, 9, 2, 1]), jnp.array([3, 0, 6, 4])
occupancy = jax.jit(partial(_lattice.occupancy, topology="rnnt", walker=_lattice.walk))
log_likelihood = partial(_lattice.log_likelihood, topology="rnnt", fastemit_lambda=0.0)


def planes(scale=1.0, frames=FRAMES, labels=LABELS):
    """Log-probabilities of blanks and labels, and a third symbol that no alignment takes."""
    normal = np.random.default_rng(0).normal(size=(3, 4, frames, labels + 1)) * scale
    blank, label, _ = (normal - np.log(np.exp(normal).sum(0))).astype(np.float32)
    return jnp.asarray(blank), jnp.asarray(label[..., :-1])


def test_alpha_and_beta_give_the_total_on_every_anti_diagonal():
    @jax.jit
    def totals(*lattice):
        steps = _lattice._steps(*lattice, "rnnt")
        return _lattice.forward_backward(*steps, _lattice.walk)[:2], log_likelihood(*lattice)

    (total, through), forward_only = totals(*planes(), *LENGTHS)
    assert len(through) == FRAMES + LABELS
    np.testing.assert_allclose(through, np.broadcast_to(total, through.shape), rtol=2e-6)
    np.testing.assert_allclose(forward_only, total, rtol=1e-6)


def test_every_alignment_takes_one_blank_per_frame_and_every_label_once():
    _, blank, label = occupancy(*planes(), *LENGTHS)
    frames, labels = np.array(LENGTHS)[..., None]
    np.testing.assert_allclose(blank.sum(2), np.arange(FRAMES) < frames, atol=3e-6)
    np.testing.assert_allclose(label.sum(1), np.arange(LABELS) < labels, atol=3e-6)


def test_occupancies_are_the_gradient():
    scale = np.array([1.0, -2.0, 0.0, 3.0], np.float32)
    ours = lambda *edges: scale @ log_likelihood(*edges, *LENGTHS)
    gradients = jax.jit(jax.grad(ours, (0, 1)))(*planes())
    for gradient, taken in zip(gradients, occupancy(*planes(), *LENGTHS)[1:]):
        np.testing.assert_allclose(gradient, scale[:, None, None] * taken, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1.0, 6.0])
def test_a_long_lattice_loses_no_precision(scale):
    """Beyond a thousand nats float32 has four decimals; occupancies must be more precise."""
    frames, labels = 300, 80
    blank, label = planes(scale, frames, labels)
    lengths = jnp.full(4, frames), jnp.full(4, labels)
    total, blank, label = occupancy(blank - 4.0, label - 4.0, *lengths)
    assert (total < -1000).all()
    np.testing.assert_allclose(blank.sum(2), 1.0, atol=4e-5)
    np.testing.assert_allclose(label.sum(1), 1.0, atol=4e-5)


def test_the_skew_moves_each_cell_to_its_anti_diagonal_and_back():
    blank = planes()[0]
    (skewed,) = _lattice.diagonals(blank)
    for t, u in np.ndindex(blank.shape[1:]):
        np.testing.assert_array_equal(np.asarray(skewed)[t + u, :, u], np.asarray(blank)[:, t, u])
    np.testing.assert_array_equal(_lattice._from_diagonals(skewed, FRAMES), blank)
