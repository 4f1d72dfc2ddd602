"""A broken utterance affects no other, and invalid arguments are named."""

import inspect
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.losses import rnnt_loss, tdt_loss, transducer_alignment, transducer_loss

pytestmark = pytest.mark.slow

tdt = partial(tdt_loss, durations=(0, 1, 2))
every_loss = pytest.mark.parametrize(
    "loss",
    [
        transducer_loss,
        partial(transducer_loss, utterances_per_group=1),
        partial(transducer_loss, implementation="reference"),
        tdt,
    ],
    ids=["tiles", "groups", "reference", "tdt"],
)


@pytest.fixture
def odd(problem):
    """Five utterances, an odd number, which any number of devices packs in one part.

    Of the eight columns five are symbols if there are three durations.
    """
    odd = problem((7, 4, 1, 2, 5), (3, 0, 1, 2, 3), vocabulary=8)
    return odd._replace(labels=odd.labels % 4 + 1)


@every_loss
def test_a_cotangent_that_is_not_finite_stays_in_its_utterance(odd, loss):
    _, pull = jax.vjp(lambda *floats: loss(*floats, *odd.integers), *odd.floats)
    ones = jnp.ones(5)
    right = pull(ones)
    for cotangent in (np.nan, np.inf):
        for ours, expected in zip(pull(ones.at[3].set(cotangent))[:2], right[:2]):
            assert not np.isfinite(ours[3]).all()
            np.testing.assert_allclose(np.delete(ours, 3, 0), np.delete(expected, 3, 0), atol=1e-6)


@every_loss
def test_nan_and_wrong_labels_give_nan_and_stay_in_their_utterance(odd, loss):
    broken = odd._replace(
        encoded=odd.encoded.at[0, 2, 1].set(jnp.nan),
        labels=odd.labels.at[4, 1].set(8 if loss is not tdt else 5),
    )
    losses, pull = jax.vjp(lambda *floats: loss(*floats, *broken.integers), *broken.floats)
    assert np.isnan(losses[0]) and np.isnan(losses[4])
    np.testing.assert_allclose(losses[1:4], loss(*odd)[1:4], rtol=1e-6)
    for gradient in pull(jnp.ones(5))[:2]:
        assert np.isfinite(gradient[1:4]).all()


@every_loss
def test_an_impossible_alignment_has_no_gradient_under_any_cotangent(odd, loss):
    topology = {} if loss is tdt else {"topology": "one_symbol_per_frame"}
    odd = odd._replace(encoded_lengths=odd.encoded_lengths.at[0].set(0).at[3].set(1))

    def squares(*floats):  # their derivative with respect to an infinite loss is infinite
        return jnp.sum(jnp.square(loss(*floats, *odd.integers, **topology)))

    gradients = jax.grad(squares, argnums=(0, 1))(*odd.floats)
    for gradient in gradients:
        assert not gradient[0].any()
        if loss is not tdt:
            assert not gradient[3].any()
        assert np.isfinite(gradient).all()


def test_impossible_logits_have_no_gradient_under_any_cotangent():
    lengths = jnp.array([2]), jnp.array([3])
    loss = lambda x: rnnt_loss(x, jnp.ones((1, 3), int), *lengths, topology="one_symbol_per_frame")
    _, pull = jax.vjp(loss, jnp.zeros((1, 2, 4, 8)))
    for cotangent in (jnp.inf, jnp.nan):
        assert not pull(jnp.array([cotangent]))[0].any()


def test_without_an_alignment_there_are_no_frames(odd):
    odd = odd._replace(encoded=odd.encoded.at[4, 2, 1].set(jnp.nan))
    odd = odd._replace(encoded_lengths=jnp.array([2, 4, 1, 0, 5]))
    alignment = transducer_alignment(*odd, topology="one_symbol_per_frame")
    assert (np.asarray(alignment.best_frames)[[0, 3, 4]] == -1).all()
    assert not alignment.posteriors[0].any() and not alignment.posteriors[3].any()
    best = alignment.best_log_probability
    assert best[0] == best[3] == -np.inf and np.isnan(best[4]) and np.isfinite(best[1:3]).all()


@every_loss
def test_second_derivatives_are_rejected(odd, loss):
    first = jax.grad(lambda x: loss(x, *odd[1:]).sum())
    squares = lambda x: jnp.sum(first(x) ** 2)
    with pytest.raises(NotImplementedError, match="differentiable once"):
        jax.grad(squares)(odd.encoded)


def test_negligible_is_relative_to_the_utterance(problem):
    odd = problem((70, 60, 40), (12, 3, 9), frames=70, width=16, vocabulary=20)
    gradient = lambda scale, **options: jax.grad(
        lambda floats: jnp.sum(transducer_loss(*floats, *odd.integers, **options)) * scale
    )(odd.floats)
    few = gradient(1e-7, negligible_gradient=1e-9)
    for ours, expected in zip(few, gradient(1e-7)):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * float(jnp.abs(expected).max()))


@every_loss
def test_with_x64_the_loss_stays_float32(odd, loss):
    expected = loss(*odd)
    with jax.enable_x64(True):
        wide = odd.labels.astype(jnp.int64)
        np.testing.assert_allclose(loss(*odd._replace(labels=wide)), expected, rtol=1e-5)
        assert loss(*odd).dtype == jnp.float32
        far = odd._replace(labels=wide.at[0, 0].set(2**32 + 1))
        assert np.isnan(loss(*far)[0])


@pytest.mark.parametrize("labels", [0, 2])
@every_loss
def test_without_frames_there_is_no_alignment(problem, loss, labels):
    given = problem((3, 3), (labels, labels), frames=3, vocabulary=8)
    given = given._replace(encoded=given.encoded[:, :0], encoded_lengths=jnp.array([0, 1]))
    losses, gradient = jax.value_and_grad(lambda x: loss(x, *given[1:])[0])(given.encoded)
    assert losses == np.inf and gradient.shape == given.encoded.shape


def test_without_frames_or_labels_there_is_nothing_to_align(problem):
    for frames, labels in ((0, 2), (0, 0), (3, 0)):
        given = problem((3, 3), (labels, labels), frames=3, vocabulary=8)
        given = given._replace(encoded=given.encoded[:, :frames])
        possible = [0 < frames] * 2
        logits = jnp.zeros((2, frames, labels + 1, 8))
        assert (np.isfinite(rnnt_loss(logits, *given.integers)) == possible).all()
        alignment = transducer_alignment(*given)
        assert alignment.posteriors.shape == (2, frames, labels)
        assert (np.isfinite(alignment.best_log_probability) == possible).all()


def test_under_shard_map_any_argument_may_be_replicated(odd):
    """Replicated lengths and labels with sharded frames, with replication checked."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    two = jax.tree.map(lambda x: x[:2], odd._replace(kernel=None, bias=None))
    two = two._replace(kernel=odd.kernel, bias=odd.bias)
    twice = jnp.concatenate([two.encoded, two.encoded])
    logits = jnp.concatenate([jax.random.normal(jax.random.key(0), (2, 8, 4, 8))] * 2)
    over = partial(jax.shard_map, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data"))
    for loss, varying in (
        (lambda x: transducer_loss(x, *two[1:]), twice),
        (lambda x: transducer_loss(x, *two[1:], implementation="reference"), twice),
        (lambda x: rnnt_loss(x, *two.integers), logits),
        (lambda x: transducer_alignment(x, *two[1:]).posteriors, twice),
    ):
        expected = loss(varying[:2])
        ours = jax.jit(over(loss))(varying)
        np.testing.assert_allclose(ours, np.concatenate([expected] * 2), rtol=1e-6, atol=1e-6)


def test_explicit_axes_are_rejected(problem):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    given = problem()
    rows = jax.NamedSharding(mesh, jax.P("data"))
    given = given._replace(encoded=jax.device_put(given.encoded, rows))
    message = "encoded is sharded over data, of AxisType.Explicit: must use a mesh with axes of"
    with pytest.raises(ValueError, match=message):
        jax.jit(transducer_loss)(*given)


# The function without the stricter type checks that tests add.
unchecked = inspect.unwrap


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda p: unchecked(transducer_loss)(*p, fastemit_lambda=np.nan),
            "fastemit_lambda = nan: must be f",
        ),
        (
            lambda p: unchecked(transducer_loss)(*p, blank_id=1.5),
            "blank_id = 1.5: must be an integer",
        ),
        (
            lambda p: unchecked(transducer_loss)(*p, blank_id=True),
            "blank_id = True: must be an integer",
        ),
        (
            lambda p: unchecked(transducer_loss)(*p, chunk_frames=1.5),
            "chunk_frames = 1.5: must be an integer",
        ),
        (
            lambda p: jax.jit(lambda b: unchecked(transducer_loss)(*p, blank_id=b))(1),
            "blank_id = .*: must be an integer",
        ),
        (
            lambda p: jax.jit(lambda x: unchecked(transducer_loss)(*p, negligible_gradient=x))(1.0),
            "negligible_gradient = .*: must be a number",
        ),
        (
            lambda p: unchecked(transducer_loss)(*p[:5], [7, 4, 1, 2], p[6]),
            r"encoded_lengths = \[7, 4, 1, 2\]: must be an array",
        ),
        (lambda p: unchecked(tdt_loss)(*p, sigma=np.inf), "sigma = inf: must be finite"),
        (
            lambda p: unchecked(tdt_loss)(*p, durations=3),
            "durations = 3: must be distinct integers",
        ),
        (
            lambda p: unchecked(tdt_loss)(*p, durations=(0, 0.5)),
            "durations = .*: must be distinct integers",
        ),
        (
            lambda p: unchecked(tdt_loss)(*p, durations=range(9)),
            "kernel.shape = .*: must have a column for each",
        ),
        (
            lambda p: transducer_alignment(*p, durations=(1,), topology="one_symbol_per_frame"),
            "topology = 'one_symbol_per_frame': must be 'rnnt' with durations",
        ),
        (
            lambda p: rnnt_loss(jnp.zeros((4, 3, 0, 5)), p[4][:, :0], *p[5:]),
            r"logits.shape = \(4, 3, 0, 5\): must have U \+ 1 cells",
        ),
    ],
)
def test_invalid_arguments_are_named_in_one_line(problem, call, message):
    with pytest.raises(ValueError) as error:
        call(problem())
    assert re.match(message, str(error.value)) and "\n" not in str(error.value)
