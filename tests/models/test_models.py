"""Laws of encoder and predictor, and the paper's parameter counts."""

import dataclasses
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import (
    Config,
    EncoderConfig,
    FeaturesConfig,
    JointConfig,
    ObjectiveConfig,
    PredictorConfig,
)
from asr_jax.layers.attention import Context
from asr_jax.layers.dropout import dropout
from asr_jax.layers.subsampling import subsample
from asr_jax.models.composition import make_model
from asr_jax.models.encoder import _WHOLE, Encoder
from asr_jax.models.predictor import LSTMPredictor, StatelessPredictor

SIZES = dict(
    kind="conformer",
    layers=2,
    width=16,
    heads=2,
    feedforward_factor=2,
    kernel_frames=5,
    shared_layers=1,
    residual_rank=0,
    attention="relative",
    subsampling="conv2d",
    subsampling_channels=4,
    dropout=0.1,
    remat="none",
)


def encoder(**options):
    """Make an encoder of SIZES, with `options` in their place."""
    features = FeaturesConfig(mel_bins=20, normalization="none")
    config = EncoderConfig(**SIZES | options)
    return Encoder(Config(features=features, encoder=config), rngs=nnx.Rngs(0))


def by_name(params):
    """Return parameters by their names, such as blocks.norm.scale."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(params))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def features(batch=3, frames=37):
    return jax.random.normal(jax.random.key(1), (batch, frames, 20))


def test_encoder_ignores_the_content_and_the_amount_of_padding():
    x, lengths = features(), jnp.array([37, 20, 9])
    encoded, encoded_lengths = encoder()(x, lengths)
    np.testing.assert_array_equal(encoded_lengths, [10, 5, 3])
    for row, length in enumerate([37, 20, 9]):
        alone, alone_lengths = encoder()(x[row : row + 1, :length], lengths[row : row + 1])
        assert alone_lengths[0] == encoded_lengths[row]
        frames = alone.shape[1]
        np.testing.assert_allclose(encoded[row, :frames], alone[0], atol=1e-5)
    poisoned = jnp.where(jnp.arange(37)[:, None] < lengths[:, None, None], x, jnp.nan)
    np.testing.assert_array_equal(encoder()(poisoned, lengths)[0], encoded)


@pytest.mark.parametrize("remat", ["layer", pytest.param("dots", marks=pytest.mark.slow)])
def test_rematerialization_changes_no_gradient(remat):
    def gradients(remat):
        graphdef, params = nnx.split(encoder(remat=remat), nnx.Param)
        loss = lambda p: jnp.sum(
            nnx.merge(graphdef, p)(features(), jnp.array([37, 20, 9]), key=jax.random.key(2))[0]
            ** 2
        )
        return nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        gradients(remat),
        gradients("none"),
    )


def test_layers_differ_in_parameters_and_in_dropout():
    model = encoder()
    kernel = model.blocks.attention.query.kernel[...]
    assert not jnp.allclose(kernel[0], kernel[1])
    first, _ = model(features(), jnp.array([37] * 3), key=jax.random.key(0))
    second, _ = model(features(), jnp.array([37] * 3), key=jax.random.key(1))
    assert not jnp.allclose(first, second)


def perturbed(attention, subsampling, factor, **options):
    """Make an encoder without zero biases."""
    sizes = dict(attention=attention, subsampling=subsampling, subsampling_factor=factor)
    model = encoder(**sizes | options)
    graphdef, params = nnx.split(model, nnx.Param)
    noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape)
    return nnx.merge(graphdef, jax.tree.map(noise, params))


@pytest.mark.parametrize(
    "attention, subsampling, factor, chunk, left, options",
    [
        ("relative", "conv2d", 4, 3, 2, {}),
        (
            *("rotary", "conv1d", 4, 1, 3),
            dict(kind="transformer", shared_layers=2, subsampling_padding="causal"),
        ),
        ("relative", "separable", 8, 2, 0, dict(shared_layers=2, residual_rank=1)),
        (
            "rotary",
            "separable",
            8,
            5,
            1,
            dict(left_context_frames=12, subsampling_padding="causal")
            | dict(convolution_norm="affine", bias=False),
        ),
    ],
)
def test_stream_encoded_by_chunks_equals_the_whole_under_the_same_mask(
    attention, subsampling, factor, chunk, left, options
):
    """A stream begins, if subsampling is causal, with factor - 1 features of anything."""
    streaming = dict(chunk_ms=(10.0 * factor * chunk,), left_chunks=left)
    model = perturbed(attention, subsampling, factor, **streaming, **options)
    x, lengths = features(frames=90), jnp.array([90, 51, 3])
    x = jnp.where(jnp.arange(90)[:, None] < lengths[:, None, None], x, jnp.nan)
    whole, whole_lengths = jax.jit(lambda *given: model(*given, chunk_frames=chunk))(x, lengths)
    step, size = jax.jit(model.step), chunk * factor
    state = model.start(3, chunk_frames=chunk)
    lead, chunks, total = model.subsampling.lead, [], 0
    assert lead == (factor - 1 if "subsampling_padding" in options else 0)
    x = jnp.pad(x, ((0, 0), (lead, 0), (0, 0)), constant_values=jnp.nan)
    lengths += lead
    for start in range(0, 90 + lead, size):
        piece = x[:, start : start + size]
        piece = jnp.pad(piece, ((0, 0), (0, size - piece.shape[1]), (0, 0)))
        state, encoded, made = step(state, piece, jnp.clip(lengths - start, 0, size))
        chunks.append(encoded)
        total += made
    np.testing.assert_array_equal(total, whole_lengths)
    streamed = jnp.concatenate(chunks, axis=1)[:, : whole.shape[1]]
    np.testing.assert_allclose(streamed, whole, atol=1e-5)


@pytest.mark.parametrize("kind, attention", [("conformer", "relative"), ("transformer", "rotary")])
def test_every_layer_norm_of_the_encoder_has_its_epsilon(kind, attention):
    make = lambda: encoder(kind=kind, attention=attention, norm_epsilon=0.1)
    modules = [module for _, module in nnx.iter_modules(nnx.eval_shape(make))]
    norms = [module.epsilon for module in modules if isinstance(module, nnx.LayerNorm)]
    assert norms == [0.1] * (6 if kind == "conformer" else 3)


@pytest.mark.parametrize("shared_layers", [1, 2])
@pytest.mark.parametrize("kind, attention", [("conformer", "relative"), ("transformer", "rotary")])
def test_only_linear_layers_of_blocks_lose_their_biases(shared_layers, kind, attention):
    def names(bias):
        make = lambda: encoder(
            kind=kind, attention=attention, shared_layers=shared_layers, bias=bias
        )
        return set(by_name(nnx.state(nnx.eval_shape(make), nnx.Param)))

    layers = "expand project query value out gated pointwise".split()
    lost = names(True) - names(False)
    assert names(False) < names(True) and lost == {
        name
        for name in names(True)
        if "blocks." in name and name.split(".")[-2] in layers and name.endswith(".bias")
    }
    assert len(lost) == (8 if kind == "conformer" else 5)


@pytest.mark.slow
def test_encoder_without_biases_equals_one_whose_biases_are_zero():
    options = dict(kind="transformer", attention="rotary", layers=1, subsampling="conv1d")
    without, lengths = encoder(bias=False, **options), jnp.array([37, 20, 9])
    with_zeros = encoder(**options)
    nnx.update(with_zeros, nnx.state(without))
    assert by_name(nnx.state(with_zeros)).keys() > by_name(nnx.state(without)).keys()
    run = jax.jit(lambda x: (without(x, lengths)[0], with_zeros(x, lengths)[0]))
    found, expected = run(features())
    assert jnp.any(expected)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_training_draws_chunk_sizes_and_masks_like_the_offline_pass():
    model = encoder(dropout=0.0, chunk_ms=(80.0, 0.0), left_context_frames=3)
    x, lengths = features(), jnp.array([37, 20, 9])
    either = [model(x, lengths, chunk_frames=size)[0] for size in (2, 0)]
    assert not jnp.allclose(*either, atol=1e-3)
    trained = jax.jit(lambda key: model(x, lengths, key=key)[0])
    drawn = [trained(jax.random.key(seed)) for seed in range(8)]
    which = {[bool(jnp.allclose(d, one, atol=1e-5)) for one in either].index(True) for d in drawn}
    assert which == {0, 1}


def test_left_context_in_frames_is_the_chunks_that_it_holds():
    chunk_ms = (40.0, 80.0, 120.0, 240.0, 0.0)
    make = lambda: encoder(chunk_ms=chunk_ms, left_chunks=9, left_context_frames=5)
    model = nnx.eval_shape(make)
    for size, chunks in {1: 5, 2: 2, 3: 1, 6: 0}.items():
        assert model._context(size, None) == Context(size, chunks)
        state = jax.eval_shape(lambda: make().start(2, chunk_frames=size))
        assert state.blocks.attention.key.shape[2] == chunks * size
    drawn = [model._context(0, jax.random.key(n)) for n in range(20)]
    assert {(int(size), int(left)) for size, left, _ in drawn} == {
        (1, 5),
        (2, 2),
        (3, 1),
        (6, 0),
        (_WHOLE, 0),
    }


def test_memory_with_a_limited_context_is_linear_in_duration():
    """The program is compiled but not run; scores of all pairs would take 4 GB per head."""

    def temporary_bytes(minutes):
        model = perturbed("relative", "separable", 8, context_frames=(128, 128))
        shapes = (
            jax.ShapeDtypeStruct((1, minutes * 6000, 20), jnp.float32),
            jax.ShapeDtypeStruct((1,), jnp.int32),
        )
        compiled = jax.jit(lambda *given: model(*given)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    half_hour, hour = temporary_bytes(30), temporary_bytes(60)
    assert hour < 2.1 * half_hour
    assert hour < 300e6


PREDICTORS = {
    "stateless": lambda: StatelessPredictor(
        11, context=2, embedding_width=6, width=8, dropout=0.1, rngs=nnx.Rngs(0)
    ),
    "context 3": lambda: StatelessPredictor(
        11, context=3, embedding_width=6, width=8, dropout=0.1, rngs=nnx.Rngs(0)
    ),
    "lstm": lambda: lstm(layers=1),
    "lstm of 3 layers": lambda: lstm(layers=3),
}


def lstm(*, layers, **options):
    sizes = dict(embedding_width=6, width=8, dropout=0.1) | options
    return LSTMPredictor(11, layers=layers, rngs=nnx.Rngs(0), **sizes)


@pytest.mark.parametrize("kind", PREDICTORS)
def test_predictor_on_a_sequence_equals_label_by_label(kind):
    predictor = PREDICTORS[kind]()
    labels = jax.random.randint(jax.random.key(0), (2, 5), 1, 11)
    whole = predictor(labels)
    assert whole.shape == (2, 6, 8)
    state = predictor.start(2)
    for u in range(6):
        np.testing.assert_allclose(predictor.output(state), whole[:, u], atol=1e-6)
        if u < 5:
            state = predictor.step(state, labels[:, u])


@pytest.mark.parametrize("kind", PREDICTORS)
def test_predictor_does_not_look_ahead(kind):
    predictor = PREDICTORS[kind]()
    labels = jnp.array([[3, 4, 5, 6]])
    changed = labels.at[0, 2:].set(jnp.array([9, 0]))
    np.testing.assert_array_equal(predictor(labels)[:, :3], predictor(changed)[:, :3])
    assert not jnp.allclose(predictor(labels)[:, 3], predictor(changed)[:, 3])


def test_lstm_equals_its_definition_layer_by_layer():
    predictor = lstm(layers=3)
    predictor.input.bias[...] = jax.random.normal(jax.random.key(1), (32,))
    labels = jax.random.randint(jax.random.key(0), (2, 4), 1, 11)
    whole = np.asarray(predictor(labels))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    params = {name: np.asarray(p, np.float64) for name, p in by_name(nnx.state(predictor)).items()}

    def part(layer, name):
        return params[name] if layer == 0 else params[f"upper.{name}"][layer - 1]

    for row, of_row in enumerate(labels):
        x = params["embedding.embedding"][[0, *of_row]]
        for layer in range(3):
            hidden, cell, outputs = np.zeros(8), np.zeros(8), []
            for given in x:
                gates = given @ part(layer, "input.kernel") + part(layer, "input.bias")
                i, f, g, o = np.split(gates + hidden @ part(layer, "recurrent.kernel"), 4)
                cell = sigmoid(f + 1) * cell + sigmoid(i) * np.tanh(g)
                hidden = sigmoid(o) * np.tanh(cell)
                outputs.append(hidden)
            x = np.array(outputs)
        np.testing.assert_allclose(whole[row], x, atol=1e-6)
        np.testing.assert_allclose(predictor(of_row[None])[0], whole[row], atol=1e-6)


@pytest.mark.slow
def test_lstm_drops_the_embedding_and_the_output_of_every_layer():
    predictor, labels = lstm(layers=2, dropout=0.5), jnp.array([[3, 4]])
    keys = jax.random.split(jax.random.key(5), 3)
    x = dropout(predictor.embedding(jnp.array([[0, 3, 4]])), 0.5, keys[0])
    for (of_input, recurrent), key in zip(predictor._layers(), keys[1:]):
        x = dropout(predictor._hidden(recurrent, of_input(x)), 0.5, key)
    np.testing.assert_array_equal(predictor(labels, key=jax.random.key(5)), x)


def test_stateless_context_starts_with_zeros_and_blank():
    predictor = PREDICTORS["stateless"]()
    np.testing.assert_array_equal(predictor.start(1), [[-1, 0]])
    embedding = predictor.embedding.embedding[...]
    context = jnp.concatenate([jnp.zeros(6), embedding[0]])
    expected = jax.nn.relu(predictor.convolution(context))
    np.testing.assert_allclose(predictor(jnp.zeros((1, 0), jnp.int32))[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "size, layers, width, heads, predictor_width, millions",
    [("S", 16, 144, 4, 320, 10.3), ("M", 16, 256, 4, 640, 30.7), ("L", 17, 512, 8, 640, 118.8)],
)
def test_parameter_counts_are_the_papers(size, layers, width, heads, predictor_width, millions):
    """Table 1 of arXiv 2005.08100, with a kernel of 31 frames in place of 32."""
    config = Config(
        encoder=EncoderConfig(layers=layers, width=width, heads=heads, subsampling_channels=width),
        predictor=PredictorConfig(kind="lstm", embedding_width=320, width=predictor_width),
        joint=JointConfig(width=320),
    )
    model = nnx.eval_shape(lambda: make_model(config, 1024, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert abs(count / 1e6 / millions - 1) < 0.02


def test_fast_conformer_has_the_papers_size():
    path = Path(__file__).parents[2] / "configs" / "librispeech_960h_fast_l.py"
    config = runpy.run_path(str(path))["config"]
    model = nnx.eval_shape(lambda: make_model(config, 1024, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert abs(count / 114e6 - 1) < 0.05


def test_auxiliary_head_exists_only_with_a_weight():
    config = Config(encoder=EncoderConfig(layers=1, width=8, heads=2, subsampling_channels=2))
    with_head = dataclasses.replace(config, objective=ObjectiveConfig(ctc_weight=0.3))
    build = lambda config: nnx.eval_shape(lambda: make_model(config, 5, rngs=nnx.Rngs(0)))
    assert build(config).ctc_head is None
    assert build(with_head).ctc_head.kernel.shape == (8, 5)


def rotary(layers, **options):
    return encoder(layers=layers, attention="rotary", subsampling="conv1d", **options)


def first_blocks(source, number, **options):
    """Make an encoder of the first blocks of another, with its parameters."""
    state = nnx.state(source)
    state["blocks"] = jax.tree.map(lambda a: a[:number], state["blocks"])
    first = rotary(number, **options)
    nnx.update(first, state)
    return first


def test_middle_equals_an_encoder_of_half_the_blocks():
    whole, lengths = rotary(3, kind="transformer"), jnp.array([37, 20, 9])
    half = first_blocks(whole, 1, kind="transformer")

    @jax.jit
    def run(x):
        return whole.with_middle(x, lengths)[1], half(x, lengths)[0]

    middle, of_half = run(features())
    np.testing.assert_allclose(middle, of_half, atol=1e-5)


def test_layer_drop_skips_blocks_per_utterance_and_keeps_the_mean():
    rows, options = 12, {"dropout": 0.0, "kind": "transformer"}
    dropping, whole = rotary(2, layer_drop=1.0, **options), rotary(2, **options)
    x, lengths = jnp.repeat(features(1), rows, axis=0), jnp.full(rows, 37)
    graphdef, params = nnx.split(whole.blocks)
    first = nnx.merge(graphdef, jax.tree.map(lambda a: a[0], params))

    @jax.jit
    def run(x):
        # The second block is always skipped; the first half the time, else doubled.
        nothing, frames = subsample(whole.subsampling, x, lengths)
        added = first(nothing, None, frames) - nothing
        assert whole.norm is not None
        return (
            dropping(x, lengths)[0] - whole(x, lengths)[0],
            dropping(x, lengths, key=jax.random.key(0))[0],
            whole.norm(nothing),
            whole.norm(nothing + 2 * added),
        )

    without_key, found, nothing, twice = run(x)
    assert not np.any(without_key)
    is_one = lambda y: np.max(np.abs(found - y), axis=(1, 2)) < 1e-5
    assert np.all(is_one(nothing) != is_one(twice)) and 0 < is_one(nothing).sum() < rows

    scales = rotary(2, layer_drop=0.5)._branch_scales(jax.random.key(1), 4000)[..., 0, 0]
    np.testing.assert_allclose(np.mean(scales == 0, axis=1), [0.25, 0.5], atol=0.03)
    np.testing.assert_allclose(np.mean(scales, axis=1), 1, atol=0.05)
