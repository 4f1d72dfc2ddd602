"""Greedy searches on the device against searches in plain Python."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from asr_jax.config import Config, EncoderConfig, JointConfig, ObjectiveConfig, PredictorConfig
from asr_jax.decoding.ctc import best_path
from asr_jax.decoding.greedy import greedy_search
from asr_jax.models.transducer import Transducer
from asr_jax.training.objective import transducer_losses

DURATIONS = (0, 1, 3)


def config_of(kind, objective):
    return Config(
        encoder=EncoderConfig(layers=1, width=8, heads=2, subsampling_channels=2),
        predictor=PredictorConfig(
            kind=kind, layers=2 if kind == "lstm" else 1, embedding_width=6, width=7
        ),
        joint=JointConfig(width=9),
        objective=ObjectiveConfig(kind=objective, durations=DURATIONS),
    )


def model(kind, seed, objective="transducer"):
    transducer = Transducer(config_of(kind, objective), 5, rngs=nnx.Rngs(seed))
    # Larger weights and a bias for blank (for HAT: against all labels), so that some frames emit no
    # label and some several.
    transducer.joint.out.kernel[...] *= 3
    bias = transducer.joint.out.bias
    bias[...] = jnp.zeros(bias.shape).at[0].set(-1.0 if objective == "hat" else 1.0)
    return transducer


def probabilities(objective, logits):
    """Return the probabilities of the symbols and of the durations."""
    logits = np.asarray(logits, np.float64)
    if objective == "hat":
        labels = np.exp(logits[1:]) / np.exp(logits[1:]).sum()
        blank = 1 / (1 + np.exp(-logits[0]))
        symbols = np.array([blank, *((1 - blank) * labels)])
        np.testing.assert_allclose(symbols.sum(), 1)
    else:
        symbols = np.exp(logits[:5]) / np.exp(logits[:5]).sum()
    return symbols, np.exp(logits[5:]) / np.exp(logits[5:]).sum()


def plain_search(transducer, objective, encoded, max_symbols):
    """Return (label, frame, log-probability) of each label, and the score of the search."""
    found, score, state = [], 0.0, transducer.predictor.start(1)
    projected = transducer.joint.encoder_projection(encoded)
    frame = emitted = 0
    while frame < len(projected):
        predicted = transducer.joint.predictor_projection(transducer.predictor.output(state))
        logits = transducer.joint(projected[frame][None], predicted)[0]
        symbols, durations = probabilities(objective, logits)
        symbol = int(np.argmax(symbols)) if emitted < max_symbols else 0
        score += math.log(symbols[symbol])
        lasts = int(symbol == 0)
        if objective == "tdt":
            chosen = int(np.argmax(durations)) if emitted < max_symbols else 1
            score += math.log(durations[chosen])
            # A blank covers at least one frame, whatever its most probable duration.
            lasts = max(DURATIONS[chosen], int(symbol == 0))
        if symbol:
            found.append((symbol, frame, math.log(symbols[symbol])))
            state = transducer.predictor.step(state, jnp.array([symbol]))
        emitted = 0 if lasts else emitted + 1
        frame += lasts
    return found, score


def check(found, row, expected, score):
    count = int(found.counts[row, 0])
    fields = (found.labels, found.frames, found.log_probabilities)
    labels, frames, log_probabilities = (np.asarray(field[row, 0]) for field in fields)
    assert labels[:count].tolist() == [label for label, _, _ in expected]
    assert frames[:count].tolist() == [frame for _, frame, _ in expected]
    np.testing.assert_allclose(log_probabilities[:count], [p for _, _, p in expected], rtol=1e-4)
    np.testing.assert_allclose(found.scores[row, 0], score, rtol=1e-4)
    assert not any(field[row, 0, count:].any() for field in fields)


@pytest.mark.parametrize(
    "kind, objective, max_symbols, frames_per_turn",
    [
        ("stateless", "transducer", 3, None),
        ("lstm", "transducer", 1, 5),
        ("lstm", "tdt", 3, 4),
        ("stateless", "tdt", 1, None),
        ("lstm", "hat", 3, 1),
    ],
)
def test_batch_equals_the_plain_search_of_each_row(kind, objective, max_symbols, frames_per_turn):
    counts, lengths = [], (12, 5, 1, 0)
    search = jax.jit(
        functools.partial(
            greedy_search, max_symbols_per_frame=max_symbols, frames_per_turn=frames_per_turn
        )
    )
    for seed in range(3):
        transducer = model(kind, seed, objective)
        encoded = 2 * jax.random.normal(jax.random.key(seed), (4, 12, 8))
        beyond = jnp.arange(12)[:, None] >= jnp.array(lengths)[:, None, None]
        found = search(transducer, jnp.where(beyond, jnp.nan, encoded), jnp.array(lengths))
        for row, length in enumerate(lengths):
            expected = plain_search(transducer, objective, encoded[row, :length], max_symbols)
            check(found, row, *expected)
            counts.append(len(expected[0]))
    assert max(counts) > 3 and min(counts) == 0
    if max_symbols > 1 and objective != "tdt":
        assert max(counts) > 12  # some frame did emit several


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["transducer", "tdt", "hat"])
def test_trained_model_emits_its_labels_and_equals_the_plain_search(objective):
    """Training gives sharp distributions and long runs of blanks, which random weights do not."""
    config, transducer = config_of("lstm", objective), model("lstm", 0, objective)
    encoded = 2 * jax.random.normal(jax.random.key(0), (4, 12, 8))
    lengths, label_lengths = jnp.array([12, 9, 5, 3]), jnp.array([6, 3, 2, 0])
    labels = jax.random.randint(jax.random.key(1), (4, 6), 1, 5)
    graphdef, params = nnx.split(transducer)
    optimizer = optax.adam(0.02)

    @jax.jit
    def trained(params):
        def loss(params):
            target = (encoded, lengths, labels, label_lengths)
            return transducer_losses(nnx.merge(graphdef, params), *target, config=config).mean()

        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, length=300)[0][0]

    transducer = nnx.merge(graphdef, trained(params))
    found = greedy_search(transducer, encoded, lengths, max_symbols_per_frame=3)
    for row, (length, count) in enumerate(zip(lengths, label_lengths)):
        expected = plain_search(transducer, objective, encoded[row, :length], 3)
        check(found, row, *expected)
        assert [label for label, _, _ in expected[0]] == labels[row, :count].tolist()


@pytest.mark.parametrize("objective", ["transducer", "tdt"])
def test_model_that_never_emits_blank_stops_at_the_limit_of_every_frame(objective):
    transducer = model("stateless", 0, objective)
    bias = transducer.joint.out.bias
    # The most probable duration is 0 frames, then 3.
    bias[...] = jnp.zeros(bias.shape).at[0].set(-1e9).at[5:6].set(1e9).at[7:8].set(1e6)
    found = greedy_search(
        transducer, jnp.ones((2, 6, 8)), jnp.array([6, 2]), max_symbols_per_frame=4
    )
    np.testing.assert_array_equal(found.counts[:, 0], [24, 8])
    np.testing.assert_array_equal(found.frames[1, 0, :8], [0] * 4 + [1] * 4)


def test_ctc_best_path_equals_explicit_merging():
    lengths = [40, 17, 1]
    # Few symbols, so that many repeat.
    logits = jax.random.normal(jax.random.key(1), (3, 40, 3)) + jnp.array([1.0, 0.5, 0])
    found = jax.jit(best_path)(logits, jnp.array(lengths))
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    for row, length in enumerate(lengths):
        best, score = log_p[row, :length].argmax(axis=-1).tolist(), log_p[row, :length].max(axis=-1)
        expected = []
        for label, frames in itertools.groupby(range(length), lambda frame: best[frame]):
            frames = list(frames)
            if label:
                expected.append((label, frames[0], score[frames].max()))
        check(found, row, expected, score.sum())
    assert int(found.counts[0, 0]) > 5


def test_ctc_best_path_merges_repeats_and_removes_blanks():
    paths = np.array([[1, 1, 0, 1, 2, 2, 0, 0], [0, 3, 3, 3, 0, 3, 1, 1], [2, 0, 1, 0, 0, 0, 0, 1]])
    lengths = [8, 6, 0]
    logits = jax.random.uniform(jax.random.key(0), (3, 8, 4)) + jax.nn.one_hot(paths, 4)
    beyond = jnp.arange(8)[:, None] >= jnp.array(lengths)[:, None, None]
    found = jax.jit(best_path)(jnp.where(beyond, jnp.nan, logits), jnp.array(lengths))
    log_p = np.max(np.asarray(jax.nn.log_softmax(logits), np.float64), axis=-1)
    # Each label with its run of frames.
    for row, expected in enumerate(
        [[(1, [0, 1]), (1, [3]), (2, [4, 5])], [(3, [1, 2, 3]), (3, [5])], []]
    ):
        each = [(label, frames[0], log_p[row, frames].max()) for label, frames in expected]
        check(found, row, each, log_p[row, : lengths[row]].sum())
