"""Splitting over fsdp sends parameters and their gradients, never activations."""

import jax
import numpy as np
import pytest
from tiny import tiny_config

from asr_jax.capacity.collectives import collectives
from asr_jax.config import MeshConfig
from asr_jax.distributed.mesh import make_mesh
from asr_jax.models.composition import split_model
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import abstract_state
from asr_jax.training.step import jitted_step
from asr_jax.types import Batch

ROWS, VOCABULARY = 64, 16


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 4])
def test_weights_are_sent_not_activations(parts):
    config = tiny_config(
        augment={"frequency_mask_bins": 4, "time_masks": 1},
        features={"sample_rate_hz": 4000, "mel_bins": 16},
        encoder={"layers": 2, "width": 32, "subsampling_channels": 32, "remat": "layer"},
        predictor={"embedding_width": 16, "width": 32},
        joint={"width": 32},
        objective={"ctc_weight": 0.3},
        train={"accumulate": parts},
    )
    mesh = make_mesh(MeshConfig(data=1, fsdp=8), jax.devices())
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    abstract = abstract_state(config, VOCABULARY, optimizer, mesh)
    graphdef, _ = split_model(config, VOCABULARY)
    array = lambda dtype, *shape: jax.ShapeDtypeStruct((ROWS, *shape), dtype)
    batch = Batch(
        samples=array(np.float32, 8000),
        sample_lengths=array(np.int32),
        labels=array(np.int32, 5),
        label_lengths=array(np.int32),
        tempo=array(np.float32),
        utterances=array(np.int32),
        second_utterance=array(np.int32),
    )
    step = jitted_step(config, graphdef, optimizer, abstract, mesh)
    sent = collectives(step.lower(abstract, batch).compile().as_text() or "")

    parameters = sum(leaf.size * 4 for leaf in jax.tree.leaves(abstract.params))
    # One array of activations, [B, T/4, D], is as large as all parameters.
    assert ROWS * 50 * 32 * 4 > parameters
    total = sum(amount.bytes for amount in sent.values())
    # Parameters are gathered once; gradients are summed once for each part.
    assert 0.9 < sent["all-gather"].bytes / parameters < 1.1
    assert total / parameters < 1.2 + 1.2 * parts, sent
