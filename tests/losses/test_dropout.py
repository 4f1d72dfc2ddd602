"""Dropout in the joint: the losses of a masked 4-D form, and the laws of the mask."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.losses import tdt_loss, transducer_loss
from asr_jax.losses._dropout import cell_hashes, dropout_scales
from asr_jax.losses._reference import Objective

FLOATS = (0, 1, 2, 3)
WEIGHTS = np.array([1.0, -0.5, 2.0, 0.25], np.float32)
DROPOUT = 0.3
KEY = jax.random.key(5)
OBJECTIVES = {
    "transducer": Objective(),
    "hat": Objective(factorization="hat"),
    "tdt": Objective(durations=(0, 1, 2), sigma=0.05),
}


def loss(p, objective, **options):
    if objective.durations:
        return tdt_loss(*p, durations=objective.durations, sigma=objective.sigma, **options)
    return transducer_loss(*p, factorization=objective.factorization, **options)


def with_gradients(p, objective, weights=WEIGHTS, **options):
    """Return losses, and the gradients of their weighted sum, with dropout."""

    def weighted(*floats):
        losses = loss((*floats, *p.integers), objective, dropout=DROPOUT, key=KEY, **options)
        return losses @ weights, losses

    (_, losses), gradients = jax.jit(jax.value_and_grad(weighted, FLOATS, has_aux=True))(*p.floats)
    return losses, gradients


def mask(batch, frames, cells, width, key=KEY, dropout=DROPOUT):
    hashes = cell_hashes(key, batch, frames, cells, dropout=dropout)
    return np.asarray(dropout_scales(hashes, width, dropout))


def assert_equal_within_rounding(got, want):
    for mine, theirs in zip(got, want):
        np.testing.assert_allclose(mine, theirs, atol=5e-6 * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize(
    "name, activation", [("transducer", "relu"), ("hat", "tanh"), ("tdt", "relu")]
)
def test_the_loss_is_that_of_the_masked_4d_form(problem, name, activation):
    objective = OBJECTIVES[name]
    p = problem((6, 4, 2, 5), vocabulary=5 + len(objective.durations), width=7)
    p = p._replace(labels=p.labels % 4 + 1)
    tiles = with_gradients(p, objective, activation=activation, chunk_frames=2)
    four_d = with_gradients(p, objective, activation=activation, implementation="reference")
    np.testing.assert_allclose(tiles[0], four_d[0], rtol=3e-6)
    assert_equal_within_rounding(tiles[1], four_d[1])

    activate = np.tanh if activation == "tanh" else partial(np.maximum, 0)
    scales = mask(*p.encoded.shape[:2], *p.predicted.shape[1:])
    for b in range(len(p.labels)):
        encoded, predicted, kernel, bias, labels = p.row(b)
        hidden = activate(encoded[:, None].astype(np.float64) + predicted)
        hidden *= scales[b, : len(encoded), : len(predicted)]
        np.testing.assert_allclose(
            tiles[0][b], objective.loss(hidden @ kernel + bias, labels), rtol=3e-6
        )


def test_groups_and_meshes_have_the_same_mask(problem):
    p = problem([7, 4, 1, 2, 6, 5, 3, 7], [3, 0, 2, 5, 1, 1, 4, 2])
    weights = jnp.linspace(1.0, 2.0, 8)
    run = partial(with_gradients, objective=OBJECTIVES["transducer"], weights=weights)
    want = run(p)
    grouped = run(p, utterances_per_group=2, chunk_frames=3)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((8,), ("data",), axis_types=auto)
    alike = {"kernel": jax.P(), "bias": jax.P()}
    places = (jax.NamedSharding(mesh, alike.get(name, jax.P("data"))) for name in p._fields)
    sharded = run(type(p)(*map(jax.device_put, p, places)))
    for losses, gradients in (grouped, sharded):
        np.testing.assert_allclose(losses, want[0], rtol=3e-6)
        assert_equal_within_rounding(gradients, want[1])


def test_without_a_key_there_is_no_dropout(problem):
    p = problem()
    plain = transducer_loss(*p)
    np.testing.assert_array_equal(transducer_loss(*p, dropout=DROPOUT), plain)
    np.testing.assert_array_equal(transducer_loss(*p, key=KEY), plain)
    assert not np.array_equal(transducer_loss(*p, dropout=DROPOUT, key=KEY), plain)


def test_the_mask_drops_independently_along_every_axis():
    """Correlations of neighbors, and of equal positions under two keys, are those of chance."""
    shape = 4, 40, 20, 30
    scales = mask(*shape)
    cut = round(256 * DROPOUT)
    assert set(np.unique(scales)) == {0, np.float32(256 / (256 - cut))}
    deviation = np.sqrt(cut * (256 - cut)) / 256 / np.sqrt(scales.size)
    assert abs(np.mean(scales == 0) - cut / 256) < 4 * deviation
    dropped = (scales == 0) - cut / 256
    pairs = [(dropped, mask(*shape, key=jax.random.key(6)) == 0)]
    for axis in range(4):
        size = shape[axis]
        first, second = np.arange(size - 1), np.arange(1, size)
        pairs.append((dropped.take(first, axis), dropped.take(second, axis)))
    for one, other in pairs:
        correlation = np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1]
        assert abs(correlation) < 4 / np.sqrt(one.size)


def test_padding_changes_no_mask():
    np.testing.assert_array_equal(mask(2, 3, 4, 6), mask(5, 8, 9, 6)[:2, :3, :4])


def test_no_mask_is_stored():
    """At B 8, T 128, U 40, D 256 a mask of bytes takes 10 MB, and hidden states 43 MB."""
    of = jax.ShapeDtypeStruct
    floats = [of(s, jnp.float32) for s in ((8, 128, 256), (8, 41, 256), (256, 64), (64,))]
    integers = [of(s, jnp.int32) for s in ((8, 40), (8,), (8,))]

    def temporaries(dropout):
        total = lambda *p: transducer_loss(*p, dropout=dropout, key=KEY).sum()
        compiled = jax.jit(jax.value_and_grad(total, FLOATS)).lower(*floats, *integers).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(0.2) < temporaries(0.0) + 9e6


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_values_outside_the_range_are_refused(problem, dropout):
    with pytest.raises(ValueError, match="dropout = "):
        transducer_loss(*problem(), dropout=dropout, key=KEY)


def test_the_kernels_refuse_dropout_by_name(problem):
    with pytest.raises(ValueError, match="it does not support dropout; 'xla' runs everywhere"):
        transducer_loss(*problem(), dropout=0.1, key=KEY, implementation="mosaic_gpu")
