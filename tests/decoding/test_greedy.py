"""Greedy search on the device against a search written out in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import Config, EncoderConfig, JointConfig, PredictorConfig
from asr_jax.decoding.greedy import greedy_search
from asr_jax.models.transducer import Transducer


def model(kind, seed):
    config = Config(
        encoder=EncoderConfig(layers=1, width=8, heads=2, subsampling_channels=2),
        predictor=PredictorConfig(kind=kind, embedding_width=6, width=7),
        joint=JointConfig(width=9),
    )
    transducer = Transducer(config, 5, rngs=nnx.Rngs(seed))
    # Larger weights and a bias for blank, so that some frames emit nothing and some several.
    transducer.joint.out.kernel[...] *= 3
    transducer.joint.out.bias[...] = jnp.array([1.0, 0, 0, 0, 0])
    return transducer


def plain_search(transducer, encoded, max_symbols):
    labels, state = [], transducer.predictor.start(1)
    projected = transducer.joint.encoder_projection(encoded)
    for frame in projected:
        for _ in range(max_symbols):
            predicted = transducer.joint.predictor_projection(transducer.predictor.output(state))
            best = int(jnp.argmax(transducer.joint(frame[None], predicted)))
            if best == 0:
                break
            labels.append(best)
            state = transducer.predictor.step(state, jnp.array([best]))
    return labels


@pytest.mark.parametrize("kind", ["stateless", "lstm"])
@pytest.mark.parametrize("max_symbols", [1, 3])
def test_batch_equals_the_plain_search_of_each(kind, max_symbols):
    found = []
    for seed in range(3):
        transducer = model(kind, seed)
        encoded = 2 * jax.random.normal(jax.random.key(seed), (4, 12, 8))
        lengths = jnp.array([12, 5, 1, 0])
        labels, counts = jax.jit(greedy_search, static_argnames="max_symbols_per_frame")(
            transducer, encoded, lengths, max_symbols_per_frame=max_symbols
        )
        for row, length in enumerate([12, 5, 1, 0]):
            expected = plain_search(transducer, encoded[row, :length], max_symbols)
            assert labels[row, : counts[row]].tolist() == expected
            assert not labels[row, counts[row] :].any()
            found.append(len(expected))
    assert max(found) > 3 and min(found) == 0
    if max_symbols > 1:
        assert max(found) > 12  # some frame did emit several


def test_a_model_that_never_says_blank_is_stopped_at_every_frame():
    transducer = model("stateless", 0)
    transducer.joint.out.bias[...] = jnp.array([-1e9, 0, 0, 0, 0])
    _, counts = greedy_search(
        transducer, jnp.ones((2, 6, 8)), jnp.array([6, 2]), max_symbols_per_frame=4
    )
    np.testing.assert_array_equal(counts, [24, 8])
