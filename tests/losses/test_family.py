"""HAT, one symbol per frame, FastEmit, TDT and alignments, compared with their definitions.

The reference enumerates all alignments in float64; its gradients are central differences.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.losses import rnnt_loss, tdt_loss, transducer_alignment, transducer_loss
from asr_jax.losses._reference import Edge, Objective, joint_logits

FLOATS = (0, 1, 2, 3)
BLANK = 2
DURATIONS = (0, 1, 2, 4)
SIZES = (5, 4, 1, 2), (2, 0, 1, 2)  # frames and labels
HAT = Objective(BLANK, factorization="hat")
ONE = Objective(BLANK, topology="one_symbol_per_frame")
BOTH = Objective(BLANK, topology="one_symbol_per_frame", factorization="hat")
TDT = Objective(BLANK, durations=DURATIONS, sigma=0.05)
OBJECTIVES = pytest.mark.parametrize(
    "objective", [HAT, ONE, BOTH, TDT], ids=["hat", "one_symbol", "both", "tdt"]
)
WEIGHTS = np.array([1.0, -0.5, 2.0, 0.25], np.float32)


@pytest.fixture(scope="module")
def problems(problem):
    make = partial(problem, *SIZES, vocabulary=5, width=2, frames=6, blank_id=BLANK)

    def of(objective, seed=0):
        """Return a problem with one more column for each duration; its labels stay symbols."""
        p = make(seed=seed)
        extra = make(vocabulary=max(len(objective.durations), 2), seed=seed + 1)
        count = len(objective.durations)
        return p._replace(
            kernel=jnp.concatenate([p.kernel, extra.kernel[:, :count]], 1),
            bias=jnp.concatenate([p.bias, extra.bias[:count]]),
        )

    return of


def loss(p, objective, **options):
    if objective.durations:
        family = dict(durations=objective.durations, sigma=objective.sigma)
        return tdt_loss(*p, blank_id=objective.blank_id, **family, **options)
    family = dict(topology=objective.topology, factorization=objective.factorization)
    return transducer_loss(*p, blank_id=objective.blank_id, **family, **options)


@partial(jax.jit, static_argnames=("objective", "implementation"))
def losses_and_gradients(p, weights, objective, implementation=None):
    def weighted(*floats):
        moved = p._replace(**dict(zip(p._fields, floats)))
        losses = loss(moved, objective, chunk_frames=2, implementation=implementation)
        return jnp.where(jnp.isfinite(losses), losses, 0.0) @ weights, losses

    gradients, losses = jax.grad(weighted, FLOATS, has_aux=True)(*p.floats)
    return losses, gradients


def reference_losses(p, objective):
    rows = [p.row(b) for b in range(len(p.labels))]
    return np.array([objective.loss(joint_logits(*r[:4]), r[4]) for r in rows])


def differences(value, p, step=1e-5):
    """Return central differences of value(p) for all numbers of p's float arrays, in float64."""
    floats = [np.asarray(x, np.float64) for x in p.floats]

    def at(i, index, change):
        moved = [x.copy() for x in floats]
        moved[i][index] += change
        return value(p._replace(**dict(zip(p._fields, moved))))

    return [
        np.array(
            [(at(i, k, step) - at(i, k, -step)) / (2 * step) for k in np.ndindex(x.shape)]
        ).reshape(x.shape)
        for i, x in enumerate(floats)
    ]


@pytest.fixture(scope="module")
def reference(problems):
    @cache
    def of(objective):
        """Return losses, and gradients of the weighted sum of losses that have an alignment."""
        p = problems(objective)
        losses = reference_losses(p, objective)
        finite = np.isfinite(losses)
        assert finite.sum() >= 3
        weighted = lambda p: reference_losses(p, objective)[finite] @ WEIGHTS[finite]
        return losses, differences(weighted, p)

    return of


def test_the_reference_is_the_sum_over_alignments(problems):
    for objective in (Objective(BLANK), HAT, ONE, TDT):
        p = problems(objective)
        for b in range(4):
            *floats, labels = p.row(b)
            logits = joint_logits(*floats)
            scores = [score for score, _ in objective.scored_alignments(logits, labels)]
            total = np.logaddexp.reduce(scores) if scores else -np.inf
            np.testing.assert_allclose(objective.loss(logits, labels), -total, rtol=1e-12)


def test_probabilities_of_the_edges_of_a_node_sum_to_one(problems):
    for objective in (Objective(BLANK), HAT, ONE, TDT._replace(sigma=0.0)):
        *floats, _ = problems(objective).row(0)
        logits = joint_logits(*floats)
        edges = [
            (symbol, Edge(0, 0, symbol != BLANK, frames))
            for symbol in range(5)
            for frames in objective.durations or (1,)
        ]
        scores = [objective.log_probability(logits, np.array([s]), edge) for s, edge in edges]
        np.testing.assert_allclose(np.exp(scores).sum(), 1.0, rtol=1e-12)


@OBJECTIVES
@pytest.mark.parametrize("implementation", [None, "reference"])
def test_loss_and_gradients(problems, reference, objective, implementation):
    p = problems(objective)
    losses, gradients = losses_and_gradients(p, WEIGHTS, objective, implementation)
    want, want_gradients = reference(objective)
    np.testing.assert_allclose(losses, want, rtol=3e-6)
    for mine, theirs in zip(gradients, want_gradients):
        np.testing.assert_allclose(mine, theirs, atol=5e-6 * max(1.0, np.abs(theirs).max()))


@OBJECTIVES
def test_padding_content_never_matters(problems, objective):
    p = problems(objective)
    beyond = lambda x, lengths: np.arange(x.shape[1]) >= np.asarray(lengths)[:, None]
    frames, cells = beyond(p.encoded, p.encoded_lengths), beyond(p.predicted, p.label_lengths + 1)
    dirty = p._replace(
        encoded=jnp.where(frames[..., None], jnp.nan, p.encoded),
        predicted=jnp.where(cells[..., None], jnp.inf, p.predicted),
        labels=jnp.where(beyond(p.labels, p.label_lengths), 99999, p.labels),
    )
    clean = losses_and_gradients(p, WEIGHTS, objective)
    got = losses_and_gradients(dirty, WEIGHTS, objective)
    jax.tree.map(np.testing.assert_array_equal, got, clean)


@OBJECTIVES
def test_no_alignment_is_inf_with_zero_gradient(problems, objective):
    p = problems(objective)._replace(encoded_lengths=jnp.array([5, 0, 9, -1]))
    losses, gradients = losses_and_gradients(p, WEIGHTS, objective)
    np.testing.assert_array_equal(np.isinf(losses), [False, True, True, True])
    assert not np.asarray(gradients[0])[1:].any() and not np.asarray(gradients[1])[1:].any()
    alone, alone_gradients = losses_and_gradients(p, WEIGHTS * [1, 0, 0, 0], objective)
    jax.tree.map(np.testing.assert_array_equal, gradients, alone_gradients)


def test_more_labels_than_frames_with_one_symbol_per_frame():
    logits = jnp.zeros((2, 3, 6, 4))
    lengths = jnp.array([3, 3]), jnp.array([3, 4])
    one = partial(rnnt_loss, labels=jnp.ones((2, 5), int), topology="one_symbol_per_frame")
    total = lambda x: one(x, logit_lengths=lengths[0], label_lengths=lengths[1])
    losses, pull = jax.jit(partial(jax.vjp, total))(logits)
    np.testing.assert_allclose(losses, [3 * np.log(4), np.inf], rtol=1e-6)
    assert not pull(jnp.array([0.0, 1.0]))[0].any()


@pytest.mark.parametrize("topology", ["rnnt", "one_symbol_per_frame"])
def test_fastemit_is_the_gradient_of_its_objective(problems, topology):
    """The objective adds lambda * expected -log P of label edges, with constant occupancies."""
    weight = 0.3
    objective = Objective(BLANK, topology=topology)
    p = problems(objective)
    *floats, labels = p.row(0)
    here = objective.scored_alignments(joint_logits(*floats), labels)
    total = np.logaddexp.reduce([score for score, _ in here])

    def regularized(p):
        *floats, _ = p.row(0)
        logits = joint_logits(*floats)
        value = objective.loss(logits, labels)
        for score, path in here:
            emitted = [objective.log_probability(logits, labels, e) for e in path if e.is_label]
            value -= weight * np.exp(score - total) * sum(emitted)
        return value

    family = dict(topology=topology, blank_id=BLANK)

    @jax.jit
    def ours(*floats):
        loss = lambda *x, **options: transducer_loss(*x, *p.integers, **family, **options)[0]
        regular = jax.value_and_grad(partial(loss, fastemit_lambda=weight), FLOATS)
        return *regular(*floats), loss(*floats)

    loss, gradients, plain = ours(*p.floats)
    for mine, theirs in zip(gradients, differences(regularized, p)):
        np.testing.assert_allclose(mine, theirs, atol=5e-6 * max(1.0, np.abs(theirs).max()))
    np.testing.assert_array_equal(loss, plain)


ALIGNED = pytest.mark.parametrize(
    "objective",
    [Objective(BLANK), HAT, ONE, TDT._replace(sigma=0.0)],
    ids=["rnnt", "hat", "one_symbol", "tdt"],
)


def align(p, objective):
    family = dict(topology=objective.topology, factorization=objective.factorization)
    run = partial(transducer_alignment, durations=objective.durations, **family)
    return jax.jit(partial(run, blank_id=BLANK))(*p)


@ALIGNED
def test_alignments_are_those_of_the_definition(problems, objective):
    p = problems(objective)
    got = jax.tree.map(np.asarray, align(p, objective))
    for b in range(4):
        *floats, labels = p.row(b)
        scored = objective.scored_alignments(joint_logits(*floats), labels)
        posteriors = np.zeros(p.labels.shape[1:] + p.encoded.shape[1:2]).T
        if not scored:
            assert got.best_log_probability[b] == -np.inf and (got.best_frames[b] == -1).all()
            continue
        total = np.logaddexp.reduce([score for score, _ in scored])
        for score, path in scored:
            for edge in path:
                if edge.is_label:
                    posteriors[edge.t, edge.u] += np.exp(score - total)
        np.testing.assert_allclose(got.posteriors[b], posteriors, atol=3e-6)
        best, path = max(scored, key=lambda x: x[0])
        np.testing.assert_allclose(got.best_log_probability[b], best, rtol=3e-6)
        emitted = [edge.t for edge in path if edge.is_label]
        padding = [-1] * (p.labels.shape[1] - len(labels))
        assert got.best_frames[b].tolist() == emitted + padding


def test_the_best_of_equal_alignments_is_one_of_them():
    zeros = lambda *shape: jnp.zeros(shape)
    floats = zeros(1, 4, 2), zeros(1, 3, 2), zeros(2, 5), None
    lengths = jnp.array([4]), jnp.array([2])
    got = jax.jit(transducer_alignment)(*floats, jnp.array([[1, 2]]), *lengths)
    assert got.best_frames.tolist() == [[0, 0]]
    np.testing.assert_allclose(got.best_log_probability, -6 * np.log(5), rtol=1e-6)


def test_alignments_have_no_gradient(problems):
    p = problems(HAT)
    total = lambda *floats: align(p._replace(**dict(zip(p._fields, floats))), HAT).posteriors.sum()
    assert not any(g.any() for g in jax.grad(total, FLOATS)(*p.floats))
