"""Beam search on the device against explicit sums over all alignments."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import (
    Config,
    EncoderConfig,
    JointConfig,
    ObjectiveConfig,
    PredictorConfig,
)
from asr_jax.decoding.automaton import Automaton
from asr_jax.decoding.beam import beam_search
from asr_jax.decoding.fusion import Fusion
from asr_jax.decoding.neural_lm import NeuralScorer
from asr_jax.decoding.ngram import estimate, ngram_automaton
from asr_jax.losses import transducer_loss
from asr_jax.models.language_model import LanguageModel
from asr_jax.models.transducer import Transducer

VOCABULARY = 3


def model(kind, vocabulary_size=VOCABULARY, seed=0, layers=1):
    config = Config(
        encoder=EncoderConfig(layers=1, width=8, heads=2, subsampling_channels=2),
        predictor=PredictorConfig(kind=kind, layers=layers, embedding_width=6, width=7),
        joint=JointConfig(width=9),
    )
    transducer = Transducer(config, vocabulary_size, rngs=nnx.Rngs(seed))
    transducer.joint.out.kernel[...] *= 3
    return transducer


def every_sequence(transducer, encoded, max_symbols):
    """Return {labels: log of the sum over alignments}; a frame emits labels, then a blank."""
    projected = transducer.joint.encoder_projection(encoded)

    @functools.cache
    def scores(labels):
        state = transducer.predictor.start(1)
        for label in labels:
            state = transducer.predictor.step(state, jnp.array([label]))
        predicted = transducer.joint.predictor_projection(transducer.predictor.output(state))
        predicted = jnp.broadcast_to(predicted, projected.shape)
        return np.asarray(jax.nn.log_softmax(transducer.joint(projected, predicted)), np.float64)

    found = {(): 0.0}
    for frame in range(len(encoded)):
        after = {}
        for labels, score in found.items():
            for n in range(max_symbols + 1):
                for more in itertools.product(range(1, VOCABULARY), repeat=n):
                    longer = labels + more
                    path = score + sum(
                        scores(longer[: len(labels) + i])[frame, label]
                        for i, label in enumerate(more)
                    )
                    path += scores(longer)[frame, 0]
                    after[longer] = np.logaddexp(after.get(longer, -math.inf), path)
        found = after
    return found


@pytest.mark.parametrize(
    "kind, layers, max_symbols, frames", [("stateless", 1, 2, 2), ("lstm", 2, 1, 4)]
)
def test_wide_beam_finds_every_sequence_with_its_probability(kind, layers, max_symbols, frames):
    transducer = model(kind, layers=layers)
    lengths = frames, frames - 1, 0
    encoded = 2 * jax.random.normal(jax.random.key(1), (3, frames, 8))
    size = 32  # 1 + 2 + 4 + 8 + 16 = 31 sequences
    found = jax.jit(functools.partial(beam_search, size=size, max_symbols_per_frame=max_symbols))(
        transducer, encoded, jnp.array(lengths)
    )
    for row, length in enumerate(lengths):
        expected = every_sequence(transducer, encoded[row, :length], max_symbols)
        by_labels = {
            tuple(np.asarray(found.labels[row, k, : found.counts[row, k]]).tolist()): float(score)
            for k, score in enumerate(found.scores[row])
            if np.isfinite(score)
        }
        assert by_labels.keys() == expected.keys()
        for labels, score in by_labels.items():
            np.testing.assert_allclose(score, expected[labels], rtol=1e-4, atol=1e-5)
        assert np.isfinite(found.scores[row]).sum() == len(expected)  # without duplicates
        scores = np.asarray(found.scores[row])
        assert (np.diff(scores[np.isfinite(scores)]) <= 0).all()


def greedy_log_probability(transducer, encoded, max_symbols):
    """Return log P of the alignment that takes the most probable symbol at every step."""
    total, state = 0.0, transducer.predictor.start(1)
    for projected in transducer.joint.encoder_projection(encoded):
        for symbols in range(max_symbols + 1):
            predicted = transducer.joint.predictor_projection(transducer.predictor.output(state))
            scores = transducer.joint.scores(projected, predicted[0]).symbols
            best = int(jnp.argmax(scores)) if symbols < max_symbols else 0
            total += float(scores[best])
            if best == 0:
                break
            state = transducer.predictor.step(state, jnp.array([best]))
    return total


def test_beam_is_not_worse_than_greedy_and_rows_are_independent():
    transducer = model("lstm", vocabulary_size=6, seed=2)
    transducer.joint.out.bias[...] = jnp.array([1.0, 0, 0, 0, 0, 0])
    lengths = jnp.array([15, 9, 1, 12])
    encoded = 2 * jax.random.normal(jax.random.key(3), (4, 15, 8))
    search = jax.jit(functools.partial(beam_search, size=4, max_symbols_per_frame=3))
    found = search(transducer, encoded, lengths)
    for row, length in enumerate(lengths.tolist()):
        greedy = greedy_log_probability(transducer, encoded[row, :length], 3)
        assert found.scores[row, 0] >= greedy - 1e-4
    assert int(found.counts[:, 0].max()) > 3

    beyond = jnp.arange(15)[:, None] >= lengths[:, None, None]
    order = jnp.array([2, 0, 3, 1])
    shuffled = search(transducer, jnp.where(beyond, 1e3, encoded)[order], lengths[order])
    for name, field in found._asdict().items():
        np.testing.assert_allclose(getattr(shuffled, name), field[order], rtol=1e-5, err_msg=name)

    # A score is a sum over a subset of the alignments in the likelihood.
    labels, counts = found.labels[:, 0], found.counts[:, 0]
    joint = transducer.joint
    log_likelihood = -transducer_loss(
        joint.encoder_projection(encoded),
        joint.predictor_projection(transducer.predictor(labels)),
        joint.out.kernel[...],
        joint.out.bias[...],
        labels,
        lengths,
        counts,
    )
    assert (found.scores[:, 0] <= log_likelihood + 1e-4).all()
    for row in range(4):
        frames = np.asarray(found.frames[row, 0, : counts[row]])
        assert (np.diff(frames) >= 0).all() and (frames < lengths[row]).all()
    assert (found.log_probabilities <= 0).all()


def test_wide_beam_adds_the_gains_of_automata_and_subtracts_the_internal_model():
    transducer, frames = model("lstm"), 4
    encoded = 2 * jax.random.normal(jax.random.key(1), (2, frames, 8))
    ngrams = estimate([[1, 2, 2], [2, 1], [1, 1, 2]], 3, VOCABULARY)
    scorer = ngram_automaton(ngrams, vocabulary_size=VOCABULARY, weight=0.8)
    other = ngram_automaton(
        estimate([[1], [2, 2]], 2, VOCABULARY), vocabulary_size=VOCABULARY, weight=-0.4
    )
    gains, step = jax.jit(Automaton.gains), jax.jit(Automaton.step)
    search = jax.jit(functools.partial(beam_search, size=32, max_symbols_per_frame=1))
    lengths = jnp.array([frames, frames - 1])
    without = search(transducer, encoded, lengths)
    found = search(transducer, encoded, lengths, fusion=Fusion((scorer, other), jnp.float32(0.3)))

    def internal(labels):
        """Return the sum of log P(label | labels before, not blank, encoder output 0)."""
        total, state = 0.0, transducer.predictor.start(1)
        silent = transducer.joint.encoder_projection(jnp.zeros((1, 8)))
        for label in labels:
            predicted = transducer.joint.predictor_projection(transducer.predictor.output(state))
            logits = transducer.joint(silent, predicted)[0, 1:]
            total += float(jax.nn.log_softmax(logits)[label - 1])
            state = transducer.predictor.step(state, jnp.array([label]))
        return total

    for row in range(2):
        plain = {
            tuple(np.asarray(without.labels[row, k, : without.counts[row, k]]).tolist()): score
            for k, score in enumerate(without.scores[row].tolist())
            if score > -math.inf
        }
        scores = [score for score in found.scores[row].tolist() if score > -math.inf]
        assert len(scores) == len(plain) and scores == sorted(scores, reverse=True)
        for k, score in enumerate(scores):
            labels = tuple(np.asarray(found.labels[row, k, : found.counts[row, k]]).tolist())
            expected = plain[labels] - 0.3 * internal(labels)
            for automaton in (scorer, other):
                states = automaton.start(1)
                for label in labels:
                    expected += float(gains(automaton, states)[0, label])
                    states = step(automaton, states, jnp.array([label]))
                expected += float(automaton.ends(states)[0])
            np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [pytest.param("stateless", marks=pytest.mark.slow), "lstm"])
def test_wide_beam_adds_the_gains_of_a_neural_language_model(kind):
    transducer, frames = model("stateless"), 3
    encoded = 2 * jax.random.normal(jax.random.key(1), (1, frames, 8))
    config = Config(
        predictor=PredictorConfig(kind=kind, embedding_width=4, width=5, dropout=0.0),
        objective=ObjectiveConfig(kind="language_model"),
    )
    language_model = LanguageModel(config, VOCABULARY, rngs=nnx.Rngs(4))
    language_model.out.kernel[...] *= 5
    graphdef, params = nnx.split(language_model, nnx.Param)
    search = jax.jit(functools.partial(beam_search, size=16, max_symbols_per_frame=1))
    lengths = jnp.array([frames])
    plain = search(transducer, encoded, lengths)

    @functools.cache
    def log_probability(labels):
        """Return log P of the labels and the end, as an explicit product."""
        total = 0.0
        for n, label in enumerate([*labels, 0]):
            logits = language_model(jnp.array([labels[:n]], jnp.int32).reshape(1, n))[0, n]
            total += float(logits[label] - jax.nn.logsumexp(logits))
        return total

    def scores(found):
        return {
            tuple(np.asarray(found.labels[0, k, : found.counts[0, k]]).tolist()): score
            for k, score in enumerate(found.scores[0].tolist())
            if score > -math.inf
        }

    for weight in (0.6, -0.4):
        scorer = NeuralScorer(
            params=nnx.to_pure_dict(params), weight=jnp.float32(weight), graphdef=graphdef
        )
        found = scores(search(transducer, encoded, lengths, fusion=Fusion((scorer,))))
        assert found.keys() == scores(plain).keys() and len(found) == 15
        for labels, score in scores(plain).items():
            expected = score + weight * log_probability(labels)
            np.testing.assert_allclose(found[labels], expected, rtol=1e-4, atol=1e-4)
    # One program without a scorer and one with it: another weight does not recompile.
    assert search._cache_size() == 2
