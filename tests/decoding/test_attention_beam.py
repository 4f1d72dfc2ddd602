"""The attention decoder, its loss, and joint CTC/attention search against explicit sums."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import Config, DecoderConfig, EncoderConfig, ObjectiveConfig
from asr_jax.decoding.attention_beam import attention_search
from asr_jax.models.encoder_decoder import AttentionModel
from asr_jax.training.objective import attention_losses

VOCABULARY, FRAMES, WEIGHT = 3, 3, 0.4
CONFIG = Config(
    encoder=EncoderConfig(layers=1, width=8, heads=2, subsampling="conv1d", subsampling_channels=4),
    decoder=DecoderConfig(layers=2, width=8, heads=2, feedforward_factor=2),
    objective=ObjectiveConfig(kind="attention", ctc_weight=0.3, label_smoothing=0.2),
)
# Every sequence of at most FRAMES labels.
SEQUENCES = [
    s for n in range(FRAMES + 1) for s in itertools.product(range(1, VOCABULARY), repeat=n)
]


@functools.cache
def model():
    graphdef, params = nnx.split(AttentionModel(CONFIG, VOCABULARY, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + random.normal(size=p.shape, scale=0.4), params)
    return nnx.merge(graphdef, jax.tree.map(jnp.float32, params))


@functools.cache
def encoded(rows=2, frames=FRAMES):
    return jax.random.normal(jax.random.key(rows), (rows, frames, 8)) * 2


def padded(sequences, width=FRAMES):
    return (
        jnp.array([[*s, *[0] * (width - len(s))] for s in sequences], jnp.int32),
        jnp.array([len(s) for s in sequences]),
    )


@functools.cache
def decoder_scores(row, length):
    """Return log P of each sequence's labels and of its end, given the row's first frames."""
    labels, counts = padded(SEQUENCES)
    frames = jnp.broadcast_to(encoded()[row], (len(labels), FRAMES, 8))
    logits = model().decoder(labels, frames, jnp.full(len(labels), length))
    log_p = np.asarray(jax.nn.log_softmax(logits))
    return {
        s: (sum(log_p[n, u, label] for u, label in enumerate(s)), log_p[n, len(s), 0])
        for n, s in enumerate(SEQUENCES)
    }


def merged(path):
    return tuple(c for c, _ in itertools.groupby(path) if c)


@functools.cache
def ctc_scores(row, length):
    """Return log P of each sequence, summed over all CTC paths, and for every frame the probability
    that the sequence is complete at that frame and not before."""
    p = np.asarray(jax.nn.softmax(model().ctc_head(encoded()[row, :length])), np.float64)
    sums, entered = dict.fromkeys(SEQUENCES, 0.0), {s: np.zeros(length) for s in SEQUENCES}
    for frames in range(length + 1):
        for path in itertools.product(range(VOCABULARY), repeat=frames):
            probability = np.prod([p[t, c] for t, c in enumerate(path)])
            if frames == length:
                sums[merged(path)] += probability
            if frames and merged(path) != merged(path[:-1]):
                entered[merged(path)][frames - 1] += probability
    return {s: (np.log(total) if total else -np.inf, entered[s]) for s, total in sums.items()}


LENGTHS = (3, 2, 0)


@pytest.mark.parametrize("weight", [pytest.param(0.0, marks=pytest.mark.slow), WEIGHT])
def test_wide_beam_finds_every_sequence_with_its_score_for_any_padding(weight):
    search = jax.jit(functools.partial(attention_search, size=len(SEQUENCES), ctc_weight=weight))
    rubbish = jnp.full((3, FRAMES + 1, 8), 1e3)
    for row, length in enumerate(LENGTHS[:2]):
        rubbish = rubbish.at[row, :length].set(encoded()[row, :length])
    found = jax.tree.map(np.asarray, search(model(), rubbish, jnp.array(LENGTHS)))
    for row, length in enumerate(LENGTHS[:2]):
        decoder, ctc = decoder_scores(row, length), ctc_scores(row, length)
        expected = {
            s: (1 - weight) * sum(decoder[s]) + (weight * ctc[s][0] if weight else 0)
            for s in SEQUENCES
            if len(s) <= length
        }
        expected = {s: score for s, score in expected.items() if np.isfinite(score)}
        existing = np.flatnonzero(np.isfinite(found.scores[row]))
        sequence = lambda k: tuple(found.labels[row, k, : found.counts[row, k]].tolist())
        assert {sequence(k) for k in existing} == expected.keys() and len(existing) == len(expected)
        for k in existing:
            s = sequence(k)
            close = functools.partial(np.testing.assert_allclose, rtol=1e-4, err_msg=str(s))
            close(found.scores[row, k], expected[s])
            close(found.log_probabilities[row, k].sum(), decoder[s][0], atol=1e-6)
            frames = [np.argmax(ctc[s[: n + 1]][1]) for n in range(len(s))]
            np.testing.assert_array_equal(
                found.frames[row, k, : len(s)], np.maximum.accumulate(frames)
            )
        assert np.all(np.diff(found.scores[row][existing]) <= 0)
    # A row without frames has no labels.
    assert found.counts[2, 0] == 0 and np.all(np.isinf(found.scores[2, 1:]))
    for field in (found.labels, found.frames, found.log_probabilities):
        assert not np.any(field[np.arange(FRAMES + 1) >= found.counts[..., None]])


def test_loss_is_the_smoothed_cross_entropy_for_any_padding():
    lengths, labels = jnp.array([3, 2]), jnp.array([[1, 2, 2], [2, 77, -5]])
    counts = jnp.array([3, 1])

    @jax.jit
    def run(encoded):
        losses = attention_losses(model(), encoded, lengths, labels, counts, config=CONFIG)
        return losses.sum(), losses

    rubbish = encoded().at[1, 2].set(1e3)
    (_, found), gradient = jax.value_and_grad(run, has_aux=True)(rubbish)
    assert not np.any(gradient[1, 2]) and np.all(np.isfinite(gradient))
    clean = jnp.array([[1, 2, 2], [2, 0, 0]])
    log_p = np.asarray(jax.nn.log_softmax(jax.jit(model().decoder)(clean, encoded(), lengths)))
    for row, count in enumerate([3, 1]):
        target = np.full((count + 1, VOCABULARY), 0.2 / VOCABULARY)
        target[np.arange(count + 1), [*clean[row, :count], 0]] += 0.8
        np.testing.assert_allclose(found[row], -np.sum(target * log_p[row, : count + 1]), rtol=1e-5)
