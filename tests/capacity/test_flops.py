"""The analytic count of operations, compared with JAX's traced products and XLA's count."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from asr_jax.capacity.flops import _pairs, model_flops
from asr_jax.config import (
    Config,
    DecoderConfig,
    EncoderConfig,
    FeaturesConfig,
    JointConfig,
    ObjectiveConfig,
    PredictorConfig,
)
from asr_jax.models.composition import split_model
from asr_jax.training import objective

CONFIG = Config(
    encoder=EncoderConfig(
        layers=3,
        width=24,
        heads=2,
        feedforward_factor=3,
        attention="rotary",
        subsampling="conv1d",
        subsampling_channels=20,
        remat="none",
    ),
    predictor=PredictorConfig(context=3, embedding_width=12, width=28),
    joint=JointConfig(width=36),
    decoder=DecoderConfig(layers=2, width=28, heads=2, feedforward_factor=3),
    objective=ObjectiveConfig(ctc_weight=0.3),
)
ROWS, SECONDS, LABELS, VOCABULARY = 2, 0.81, 5, 11


def gradients_of_losses(config):
    """Return the gradient function of the loss in its 4-D form, without padding, and parameters."""
    graphdef, params = split_model(config, VOCABULARY)
    features = jnp.zeros((ROWS, round(100 * SECONDS), config.features.mel_bins))
    lengths = jnp.full(ROWS, features.shape[1])
    labels, label_lengths = jnp.ones((ROWS, LABELS), int), jnp.full(ROWS, LABELS)

    def total(params):
        model = nnx.merge(graphdef, params)
        return sum(
            losses.sum()
            for losses in objective.utterance_losses(
                model, features, lengths, labels, label_lengths, config=config
            ).values()
        )

    return jax.grad(total), params


@pytest.fixture(autouse=True)
def plain_losses(monkeypatch):
    """Compute the joint of all cells in one product, once, and CTC without selecting labels."""
    for name in ("transducer_loss", "tdt_loss"):
        plain = functools.partial(getattr(objective, name), implementation="reference")
        monkeypatch.setattr(objective, name, plain)
    monkeypatch.setattr(optax, "ctc_loss", lambda logits, *_: jnp.sum(logits, axis=(1, 2)))


def traced_products(jaxpr):
    """Return the operations of all matrix products; a scan's body counts as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += (
                2 * equation.outvars[0].aval.size * int(np.prod([shape[i] for i in contracted]))
            )
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = [getattr(x, "jaxpr", x) for x in equation.params.values()]
        total += times * sum(traced_products(x) for x in inner if hasattr(x, "eqns"))
    return total


def counted(config):
    return model_flops(config, VOCABULARY, rows=ROWS, seconds=SECONDS, labels=LABELS)


@pytest.mark.parametrize(
    "attention, predictor, objective_kind",
    [
        ("rotary", {}, "transducer"),
        ("relative", dict(kind="lstm"), "transducer"),
        ("rotary", dict(kind="lstm", layers=3), "tdt"),
        ("rotary", {}, "ctc"),
        ("rotary", {}, "attention"),
    ],
)
def test_matrix_products_are_those_that_are_traced(attention, predictor, objective_kind):
    config = dataclasses.replace(
        CONFIG,
        encoder=dataclasses.replace(CONFIG.encoder, attention=attention),
        predictor=dataclasses.replace(CONFIG.predictor, **predictor),
        objective=dataclasses.replace(CONFIG.objective, kind=objective_kind),
    )
    function, params = gradients_of_losses(config)
    encoder, frames = config.encoder, 21
    traced = traced_products(jax.make_jaxpr(function)(params).jaxpr)
    # Tracing includes gradients of features and sinusoids, which are unused and which XLA omits.
    traced -= 2 * ROWS * 41 * 3 * config.features.mel_bins * encoder.subsampling_channels
    if attention == "relative":
        traced -= 2 * encoder.layers * 2 * frames * encoder.width**2
        traced -= 4 * encoder.layers * encoder.width**2  # the sinusoid of no pair
        # Scores of all distances; half of them belong to a pair.
        traced -= 6 * encoder.layers * ROWS * frames * frames * encoder.width
    # Depthwise convolutions are not traced as matrix products.
    depthwise = ROWS * frames * encoder.kernel_frames * encoder.width
    assert sum(counted(config).values()) - 6 * encoder.layers * depthwise == traced


def test_the_total_is_close_to_what_xla_counts():
    encoder = EncoderConfig(
        layers=1, width=256, subsampling_channels=64, attention="rotary", remat="none"
    )
    predictor, joint = PredictorConfig(width=256), JointConfig(width=256)
    config = Config(encoder=encoder, predictor=predictor, joint=joint)
    function, params = gradients_of_losses(config)
    analysis: Any = jax.jit(function).lower(params).cost_analysis()
    # XLA also counts other operations, and omits taps that only see zeros.
    assert abs(analysis["flops"] / sum(counted(config).values()) - 1) < 0.02


def test_pairs_are_the_frames_that_see_each_other():
    features = FeaturesConfig(normalization="none")

    def pairs(frames, sees, **options):
        encoder = dataclasses.replace(CONFIG.encoder, **options)
        config = dataclasses.replace(CONFIG, features=features, encoder=encoder)
        seen = [sees(q, t) for q in range(frames) for t in range(frames)]
        assert _pairs(frames, config) == sum(seen)

    for frames in (1, 7, 18):
        pairs(frames, lambda q, t: True)
        pairs(frames, lambda q, t: q - 3 <= t <= q + 5, context_frames=(3, 5))
        pairs(
            frames,
            lambda q, t: q // 4 - 2 <= t // 4 <= q // 4,
            chunk_ms=(160.0,),
            left_chunks=2,
        )
        pairs(
            frames,
            lambda q, t: q // 4 - 2 <= t // 4 <= q // 4,
            chunk_ms=(160.0,),
            left_context_frames=11,
        )


@pytest.mark.parametrize("kind, factor", [("conv1d", 8), ("separable", 8)])
def test_operations_of_subsampling_are_those_that_are_traced(kind, factor):
    encoder = dataclasses.replace(CONFIG.encoder, subsampling=kind, subsampling_factor=factor)
    config = dataclasses.replace(CONFIG, encoder=encoder)
    graphdef, params = split_model(config, VOCABULARY)
    features = jnp.zeros((ROWS, 81, config.features.mel_bins))

    def total(params):
        return (
            nnx.merge(graphdef, params).encoder.subsampling(features, jnp.full(ROWS, 81))[0].sum()
        )

    traced = traced_products(jax.make_jaxpr(jax.grad(total))(params).jaxpr)
    channels = encoder.subsampling_channels
    if kind == "conv1d":
        first = 4 * ROWS * 41 * 3 * config.features.mel_bins * channels
        traced -= first // 2  # the gradient of the features
    else:
        first = 4 * ROWS * 41 * 40 * 9 * channels  # a convolution, as are the depthwise ones:
        traced += first + 6 * ROWS * 9 * channels * (21 * 20 + 11 * 10)
    assert counted(config)["subsampling"] == traced


def test_operations_of_causal_subsampling_are_those_of_its_longer_outputs():
    sizes = dict(subsampling="separable", subsampling_factor=8, subsampling_padding="causal")
    encoder = dataclasses.replace(CONFIG.encoder, **sizes)
    features = dataclasses.replace(CONFIG.features, mel_bins=80)
    config = dataclasses.replace(CONFIG, encoder=encoder, features=features)
    channels, width = encoder.subsampling_channels, encoder.width
    # Each length L, of features and of the 80 bins, becomes L // 2 + 1.
    for frames, lengths in {81: (41, 21, 11), 78: (40, 21, 11), 64: (33, 17, 9)}.items():
        first, second, third = lengths
        inner = (second * 21 + third * 11) * (9 + channels) * channels
        expected = 4 * first * 41 * 9 * channels + 6 * (inner + third * 11 * channels * width)
        flops = model_flops(config, VOCABULARY, rows=1, seconds=frames / 100, labels=1)
        assert flops["subsampling"] == expected


def test_operations_of_a_batch_are_the_sum_of_its_rows():
    of = lambda rows, seconds, labels: model_flops(
        CONFIG, VOCABULARY, rows=rows, seconds=seconds, labels=labels
    )
    alone = [of(1, 0.3, 2), of(1, 1.7, 9)]
    together = of(2, [0.3, 1.7], [2, 9])
    assert together == {part: sum(row[part] for row in alone) for part in together}


def test_remat_of_all_but_products_repeats_few_products():
    def executed(remat):
        encoder = dataclasses.replace(CONFIG.encoder, remat=remat)
        function, params = gradients_of_losses(dataclasses.replace(CONFIG, encoder=encoder))
        return traced_products(jax.make_jaxpr(function)(params).jaxpr)

    kept, all_again, some_again = map(executed, ("none", "layer", "dots"))
    assert kept < some_again < kept + (all_again - kept) / 4


def test_two_views_double_the_rows_and_intermediate_ctc_doubles_the_head():
    of = functools.partial(model_flops, vocabulary_size=VOCABULARY, labels=LABELS)
    with_objective = lambda **options: dataclasses.replace(
        CONFIG, objective=dataclasses.replace(CONFIG.objective, **options)
    )
    two_views = of(with_objective(consistency_weight=0.1), rows=ROWS, seconds=SECONDS)
    assert two_views == of(CONFIG, rows=2 * ROWS, seconds=SECONDS)
    middle = of(with_objective(intermediate_ctc_weight=0.1), rows=ROWS, seconds=SECONDS)
    once = of(CONFIG, rows=ROWS, seconds=SECONDS)
    assert middle == once | {"ctc": 2 * once["ctc"]}
