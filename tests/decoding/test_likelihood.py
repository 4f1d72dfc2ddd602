"""The likelihood of labels is the one that training maximizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import tiny_config

from asr_jax.config import DecodingConfig
from asr_jax.decoding.likelihood import label_log_likelihoods
from asr_jax.models.composition import make_model
from asr_jax.training.objective import losses_of_encoded

SLOW = (pytest.param(kind, marks=pytest.mark.slow) for kind in ("tdt", "hat"))


@pytest.mark.parametrize("kind", ["transducer", "ctc", *SLOW])
def test_likelihood_is_that_of_training(kind):
    # CTC is also the head of a transducer.
    with_head = {"kind": "transducer", "ctc_weight": 0.5} if kind == "ctc" else {"kind": kind}
    config = tiny_config(objective=with_head)
    if kind == "tdt":
        objective = dataclasses.replace(config.objective, durations=(0, 1, 2), sigma=0.0)
        config = dataclasses.replace(config, objective=objective)
    model = make_model(config, 7, rngs=nnx.Rngs(0))
    encoded = jax.random.normal(jax.random.key(1), (2, 9, config.encoder.width))
    lengths, labels, counts = map(jnp.array, ([9, 6], [[2, 3, 3], [5, 6, 6]], [3, 1]))
    target = (encoded, lengths, labels, counts)
    decoding = DecodingConfig(head="ctc" if kind == "ctc" else "objective")
    found = label_log_likelihoods(model, *target, config=decoding)
    losses = losses_of_encoded(model, *target, config=config)
    np.testing.assert_allclose(-found, losses["ctc_loss" if kind == "ctc" else "loss"], rtol=1e-5)
