"""Greedy searches on the device against searches written out in Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import Config, EncoderConfig, JointConfig, ObjectiveConfig, PredictorConfig
from asr_jax.decoding.ctc import best_path
from asr_jax.decoding.greedy import greedy_search
from asr_jax.models.transducer import Transducer

DURATIONS = (0, 1, 3)


def model(kind, seed, objective="transducer"):
    config = Config(
        encoder=EncoderConfig(layers=1, width=8, heads=2, subsampling_channels=2),
        predictor=PredictorConfig(kind=kind, embedding_width=6, width=7),
        joint=JointConfig(width=9),
        objective=ObjectiveConfig(kind=objective, durations=DURATIONS),
    )
    transducer = Transducer(config, 5, rngs=nnx.Rngs(seed))
    # Larger weights and a bias for blank (HAT's against all others), so that some frames emit
    # nothing and some several.
    transducer.joint.out.kernel[...] *= 3
    bias = transducer.joint.out.bias
    bias[...] = jnp.zeros(bias.shape).at[0].set(-1.0 if objective == "hat" else 1.0)
    return transducer


def most_probable(objective, logits):
    """The symbol, and how many frames it lasts for."""
    logits = np.asarray(logits, np.float64)
    if objective == "hat":
        labels = np.exp(logits[1:]) / np.exp(logits[1:]).sum()
        blank = 1 / (1 + np.exp(-logits[0]))
        probabilities = np.array([blank, *((1 - blank) * labels)])
        np.testing.assert_allclose(probabilities.sum(), 1)
    else:
        probabilities = logits[:5]
    symbol = int(np.argmax(probabilities))
    if objective != "tdt":
        return symbol, int(symbol == 0)
    first = 1 if symbol == 0 else 0  # blanks last for at least one frame
    return symbol, DURATIONS[first + int(np.argmax(logits[5 + first :]))]


def plain_search(transducer, objective, encoded, max_symbols):
    labels, state = [], transducer.predictor.start(1)
    projected = transducer.joint.encoder_projection(encoded)
    frame = emitted = 0
    while frame < len(projected):
        predicted = transducer.joint.predictor_projection(transducer.predictor.output(state))
        logits = transducer.joint(projected[frame][None], predicted)[0]
        symbol, lasts = most_probable(objective, logits)
        if symbol:
            labels.append(symbol)
            state = transducer.predictor.step(state, jnp.array([symbol]))
            emitted += 1
        if lasts == 0 and emitted == max_symbols:
            lasts = 1
        emitted = 0 if lasts else emitted
        frame += lasts
    return labels


@pytest.mark.parametrize(
    "kind, objective",
    [("stateless", "transducer"), ("lstm", "transducer"), ("lstm", "tdt"), ("stateless", "hat")],
)
@pytest.mark.parametrize("max_symbols", [1, 3])
def test_batch_equals_the_plain_search_of_each(kind, objective, max_symbols):
    found = []
    search = jax.jit(functools.partial(greedy_search, max_symbols_per_frame=max_symbols))
    for seed in range(3):
        transducer = model(kind, seed, objective)
        encoded = 2 * jax.random.normal(jax.random.key(seed), (4, 12, 8))
        lengths = jnp.array([12, 5, 1, 0])
        labels, counts = search(transducer, encoded, lengths)
        for row, length in enumerate([12, 5, 1, 0]):
            expected = plain_search(transducer, objective, encoded[row, :length], max_symbols)
            assert labels[row, : counts[row]].tolist() == expected
            assert not labels[row, counts[row] :].any()
            found.append(len(expected))
    assert max(found) > 3 and min(found) == 0
    if max_symbols > 1 and objective != "tdt":
        assert max(found) > 12  # some frame did emit several


@pytest.mark.parametrize("objective", ["transducer", "tdt"])
def test_a_model_that_never_says_blank_is_stopped_at_every_frame(objective):
    transducer = model("stateless", 0, objective)
    bias = transducer.joint.out.bias
    bias[...] = jnp.zeros(bias.shape).at[0].set(-1e9).at[5:6].set(1e9)  # and nothing lasts
    _, counts = greedy_search(
        transducer, jnp.ones((2, 6, 8)), jnp.array([6, 2]), max_symbols_per_frame=4
    )
    np.testing.assert_array_equal(counts, [24, 8])


def test_ctc_best_path_merges_repeats_and_leaves_blanks_out():
    paths = np.array([[1, 1, 0, 1, 2, 2, 0, 0], [0, 3, 3, 3, 0, 3, 1, 1], [2, 0, 1, 0, 0, 0, 0, 1]])
    lengths = [8, 6, 0]
    logits = jax.random.uniform(jax.random.key(0), (3, 8, 4)) + jax.nn.one_hot(paths, 4)
    beyond = jnp.arange(8)[:, None] >= jnp.array(lengths)[:, None, None]
    labels, counts = best_path(jnp.where(beyond, jnp.nan, logits), jnp.array(lengths))
    for row, expected in enumerate([[1, 1, 2], [3, 3], []]):
        assert labels[row, : counts[row]].tolist() == expected
        assert not labels[row, counts[row] :].any()
