"""Each layer against its explicit definition, and the laws of padding."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.layers import attention, subsampling
from asr_jax.layers.attention import (
    Context,
    RelativeAttention,
    RotaryAttention,
    _attend_rotated,
    farthest_frames,
    relative_positions,
    shift_relative,
)
from asr_jax.layers.conformer import ConformerBlock
from asr_jax.layers.convolution import ConvolutionModule, depthwise_convolution
from asr_jax.layers.dropout import dropout
from asr_jax.layers.feedforward import FeedForward
from asr_jax.layers.length import subsampled
from asr_jax.layers.norm import Affine
from asr_jax.layers.subsampling import (
    SeparableConvolution,
    Subsampling1D,
    Subsampling2D,
    rectify,
    subsample,
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_shift_relative_selects_the_distance_of_each_pair():
    for queries, frames in ((5, 5), (2, 5)):
        scores = normal(0, 2, 3, queries, queries + frames)
        shifted = shift_relative(scores)
        assert shifted.shape[-1] == frames
        for q in range(queries):
            for t in range(frames):
                np.testing.assert_array_equal(shifted[..., q, t], scores[..., q, queries - q + t])


def test_relative_positions_are_sinusoids_of_the_distance():
    positions = relative_positions(4, 6)
    for row, distance in enumerate([4, 3, 2, 1, 0, -1, -2, -3]):
        for pair in range(3):
            angle = distance / 10_000 ** (2 * pair / 6)
            np.testing.assert_allclose(positions[row, 2 * pair], np.sin(angle), atol=1e-6)
            np.testing.assert_allclose(positions[row, 2 * pair + 1], np.cos(angle), atol=1e-6)


def test_relative_attention_equals_its_formula():
    width, heads, frames, length = 8, 2, 5, 4
    layer = RelativeAttention(width, heads=heads, rngs=nnx.Rngs(0))
    layer.content_bias[...] = normal(1, heads, width // heads)
    layer.position_bias[...] = normal(2, heads, width // heads)
    x = normal(3, 1, frames, width)
    got = layer(x, relative_positions(frames, width), jnp.array([length]))

    normed = np.asarray(layer.norm(x))[0]
    query, key = normed @ layer.query.kernel[...], normed @ layer.key.kernel[...]
    value = normed @ layer.value.kernel[...] + layer.value.bias[...]
    expected = np.zeros((frames, width))
    for h in range(heads):
        of_head = slice(h * width // heads, (h + 1) * width // heads)
        for t in range(frames):
            scores = []
            for s in range(length):
                sinusoid = relative_positions(frames, width)[frames - (t - s)]
                position = (sinusoid @ layer.position.kernel[...])[of_head]
                scores.append(
                    (query[t, of_head] + layer.content_bias[h]) @ key[s, of_head]
                    + (query[t, of_head] + layer.position_bias[h]) @ position
                )
            weights = jax.nn.softmax(jnp.array(scores) / np.sqrt(width // heads))
            expected[t, of_head] = weights @ value[:length, of_head]
    expected = expected @ layer.out.kernel[...] + layer.out.bias[...]
    np.testing.assert_allclose(got[0], expected, atol=1e-5)


def test_rotary_attention_equals_its_formula():
    width, heads, frames, length = 8, 2, 5, 4
    layer = RotaryAttention(width, heads=heads, rngs=nnx.Rngs(0))
    x = normal(3, 1, frames, width)
    got = layer(x, None, jnp.array([length]))

    normed = layer.norm(x)[0]
    query, key, value = (np.asarray(p(normed)) for p in (layer.query, layer.key, layer.value))
    expected = np.zeros((frames, width))
    for h in range(heads):
        of_head = slice(h * 4, (h + 1) * 4)
        for t in range(frames):
            scores = []
            for s in range(length):
                # Each pair of a head's four channels is a complex number, rotated by the distance.
                q = query[t, of_head][:2] + 1j * query[t, of_head][2:]
                k = key[s, of_head][:2] + 1j * key[s, of_head][2:]
                turned = q * np.conj(k) * np.exp(1j * (t - s) * np.array([1, 10_000**-0.5]))
                scores.append(turned.real.sum())
            weights = jax.nn.softmax(jnp.array(scores) / 2)
            expected[t, of_head] = weights @ value[:length, of_head]
    np.testing.assert_allclose(got[0], layer.out(jnp.asarray(expected)), atol=1e-5)


@pytest.mark.parametrize("before", [2, 4])
def test_gradient_of_depthwise_convolution_equals_that_of_a_loop(before):
    def loop(x, kernel):
        padded = jnp.pad(x, ((0, 0), (before, 4 - before), (0, 0)))
        return sum(padded[:, k : k + 6] * kernel[k] for k in range(5))

    x, kernel, weight = normal(0, 2, 6, 3), normal(1, 5, 3), normal(2, 2, 6, 3)
    gradients = lambda f: jax.grad(lambda *a: jnp.sum(weight * f(*a)), argnums=(0, 1))(x, kernel)
    ours = lambda x, kernel: depthwise_convolution(x, kernel, before)
    for got, expected in zip(gradients(ours), gradients(loop)):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("before", [2, 4])
def test_depthwise_convolution_equals_a_loop(before):
    x, kernel = normal(0, 2, 6, 3), normal(1, 5, 3)
    expected = np.zeros(x.shape)
    for t in range(6):
        for k in range(5):
            if 0 <= t + k - before < 6:
                expected[:, t] += x[:, t + k - before] * kernel[k]
    np.testing.assert_allclose(depthwise_convolution(x, kernel, before), expected, atol=1e-6)


def test_subsampling_over_time_equals_convolutions():
    layer = Subsampling1D(8, 4, channels=5, rngs=nnx.Rngs(0))
    x = normal(0, 1, 11, 8)
    expected = x
    for convolution in (layer.first, layer.second):
        kernel = convolution.kernel[...].reshape(3, -1, 5)
        expected = jax.lax.conv_general_dilated(
            expected, kernel, (2,), ((1, 1),), dimension_numbers=("NWC", "WIO", "NWC")
        )
        expected = jax.nn.relu(expected + convolution.bias[...])
    np.testing.assert_allclose(layer(x, jnp.array([11]))[0], layer.project(expected), atol=1e-5)


def test_gradient_of_rectify_equals_that_of_its_definition():
    x, weight = normal(0, 2, 5, 3, 4), normal(1, 2, 5, 3, 4)
    real = jnp.arange(5) < jnp.array([[5], [2]])

    def plain(x, real):
        return jnp.where(real[..., None, None], jnp.maximum(x, 0), 0)

    np.testing.assert_array_equal(rectify(x, real), plain(x, real))
    gradient = lambda f: jax.grad(lambda x: jnp.sum(weight * f(x, real)))(x)
    np.testing.assert_array_equal(gradient(rectify), gradient(plain))


KINDS = [Subsampling1D, Subsampling2D, functools.partial(Subsampling2D, separable=True)]


def test_separable_convolution_equals_its_two_convolutions():
    layer = SeparableConvolution(3, rngs=nnx.Rngs(0))
    x = normal(0, 2, 7, 6, 3)
    kernel = layer.depthwise[...][:, :, None]
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=3,
    )
    np.testing.assert_allclose(layer(x), layer.pointwise(expected), atol=1e-6)


@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_subsampling_returns_the_number_of_its_frames(kind, factor):
    layer = kind(8, 4, channels=2, factor=factor, rngs=nnx.Rngs(0))
    for frames in range(1, 18):
        features = jax.ShapeDtypeStruct((1, frames, 8), jnp.float32)
        shape = jax.eval_shape(layer, features, jnp.array([frames]))[0].shape
        assert shape[1] == subsampled(frames, factor) == math.ceil(frames / factor)


def with_biases(kind, factor, **options):
    """Make a layer whose biases turn zeros into other values."""
    layer = kind(8, 4, channels=2, factor=factor, rngs=nnx.Rngs(0), **options)
    for part in (layer.first, layer.second, layer.third):
        if part is not None:
            getattr(part, "pointwise", part).bias[...] = jnp.ones(2)
    return layer


@pytest.mark.parametrize("kind, factor", [*((kind, 4) for kind in KINDS), (KINDS[2], 8)])
def test_subsampling_ignores_padding(kind, factor):
    layer = with_biases(kind, factor)
    for length in (1, 2, 7):
        x = normal(length, 1, length, 8)
        padded = jnp.pad(x, ((0, 0), (0, 12 - length), (0, 0)), constant_values=jnp.nan)
        alone, lengths = layer(x, jnp.array([length]))
        within, padded_lengths = layer(padded, jnp.array([length]))
        assert lengths == padded_lengths
        np.testing.assert_allclose(within[:, : lengths[0]], alone, atol=1e-6)


@pytest.mark.parametrize("kind, factor", [(KINDS[0], 4), (KINDS[2], 8)])
def test_subsampling_in_pieces_equals_all_at_once(kind, factor, monkeypatch):
    layer, x, lengths = with_biases(kind, factor), normal(0, 2, 45, 8), jnp.array([45, 18])
    x = x.at[1, 18:].set(jnp.nan)
    expected, expected_lengths = layer(x, lengths)
    monkeypatch.setattr(subsampling, "PIECE_FRAMES", 16)
    got, got_lengths = subsample(layer, x, lengths)
    np.testing.assert_array_equal(got_lengths, expected_lengths)
    assert got.shape == expected.shape
    for row, length in enumerate(expected_lengths):
        np.testing.assert_allclose(got[row, :length], expected[row, :length], atol=1e-6)


def causal_convolutions(layer, x):
    """Apply the layer's convolutions with 2 zeros before and 1 after both axes, to one recording.

    The last zero of an axis only completes the last stride.
    """
    pad = lambda x, axes: jnp.pad(x, [(2, 1) if axis in axes else (0, 0) for axis in range(x.ndim)])
    convolve = functools.partial(jax.lax.conv_general_dilated, padding="VALID")
    if isinstance(layer, Subsampling1D):
        for part in (layer.first, layer.second):
            kernel = part.kernel[...].reshape(3, -1, 2)
            names = ("NWC", "WIO", "NWC")
            x = convolve(pad(x, [1]), kernel, (2,), dimension_numbers=names)
            x = jax.nn.relu(x + part.bias[...])
        return layer.project(x)
    convolve = functools.partial(convolve, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = x[..., None]
    for part in (layer.first, layer.second, layer.third):
        x = pad(x, [1, 2])
        if isinstance(part, SeparableConvolution):
            kernel = part.depthwise[...][:, :, None]
            x = part.pointwise(convolve(x, kernel, (2, 2), feature_group_count=2))
        elif part is not None:
            x = convolve(x, part.kernel[...], (2, 2)) + part.bias[...]
        x = jax.nn.relu(x) if part is not None else x[:, 2:-1, 2:-1]
    return layer.project(x.reshape(*x.shape[:2], -1))


@pytest.mark.parametrize(
    "kind, factor",
    [
        pytest.param(KINDS[0], 4, marks=pytest.mark.slow),
        pytest.param(KINDS[1], 4, marks=pytest.mark.slow),
        (KINDS[2], 8),
    ],
)
def test_causal_subsampling_equals_its_convolutions(kind, factor, monkeypatch):
    layer, lengths = with_biases(kind, factor, causal=True), (1, 0, 26)
    x = normal(0, 3, 26, 8)
    padded = jnp.where(jnp.arange(26)[:, None] < jnp.array(lengths)[:, None, None], x, jnp.nan)
    got, got_lengths = subsample(layer, padded, jnp.array(lengths))
    monkeypatch.setattr(subsampling, "PIECE_FRAMES", 16)
    in_pieces, _ = subsample(layer, padded, jnp.array(lengths))
    assert in_pieces.shape == got.shape
    for row, length in enumerate(lengths):
        frames = length
        for _ in range(int(math.log2(factor)) if length else 0):
            frames = frames // 2 + 1
        assert got_lengths[row] == frames == subsampled(length, factor, lead=factor - 1)
        if length:
            expected = causal_convolutions(layer, x[row : row + 1, :length])[0]
            assert len(expected) == frames
            np.testing.assert_allclose(got[row, :frames], expected, atol=1e-5)
            np.testing.assert_allclose(in_pieces[row, :frames], expected, atol=1e-5)


def test_causal_subsampling_leaves_17_of_128_bins():
    make = lambda: Subsampling2D(
        128, 4, channels=2, factor=8, separable=True, causal=True, rngs=nnx.Rngs(0)
    )
    assert nnx.eval_shape(make).project.kernel.shape == (17 * 2, 4)


def test_convolution_module_treats_padding_as_zeros():
    layer = ConvolutionModule(6, kernel_frames=5, rngs=nnx.Rngs(0))
    x = normal(0, 1, 4, 6)
    padded = jnp.concatenate([x, jnp.full((1, 3, 6), 1e3)], axis=1)
    alone = layer(x, jnp.array([4]))
    within = layer(padded, jnp.array([4]))
    np.testing.assert_allclose(within[:, :4], alone, atol=1e-6)


def test_affine_norm_equals_a_batch_norm_with_fixed_statistics():
    layer = ConvolutionModule(6, kernel_frames=3, depthwise_norm=Affine, rngs=nnx.Rngs(0))
    mean, weight, bias, convolution_bias = (normal(n, 6) for n in range(4))
    variance = normal(4, 6) ** 2 + 0.5
    layer.depthwise_norm.scale[...] = weight / jnp.sqrt(variance + 1e-5)
    layer.depthwise_norm.bias[...] = bias + layer.depthwise_norm.scale * (convolution_bias - mean)
    x = normal(5, 2, 4, 6)

    value, gate = np.split(np.asarray(layer.gated(layer.norm(x)), np.float64), 2, axis=-1)
    gated = np.pad(value / (1 + np.exp(-gate)), ((0, 0), (1, 1), (0, 0)))
    kernel = np.asarray(layer.depthwise, np.float64)
    convolved = sum(gated[:, k : k + 4] * kernel[k] for k in range(3)) + convolution_bias
    batch_normed = weight * (convolved - mean) / np.sqrt(variance + 1e-5) + bias
    expected = layer.pointwise(jax.nn.silu(jnp.asarray(batch_normed)))
    np.testing.assert_allclose(layer(x, jnp.array([4, 4])), expected, atol=1e-5)


def test_affine_norm_sums_its_gradients_in_float32():
    layer, x = Affine(3, rngs=nnx.Rngs(0)), jnp.ones((1, 5000, 3), jnp.bfloat16)
    graphdef, params = nnx.split(layer)
    params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    total = lambda p: jnp.sum(nnx.merge(graphdef, p)(x).astype(jnp.float32))
    assert nnx.merge(graphdef, params)(x).dtype == jnp.bfloat16
    for leaf in jax.tree.leaves(jax.grad(total)(params)):
        np.testing.assert_allclose(leaf.astype(jnp.float32), 5000, rtol=2**-8)


def test_layer_norm_adds_its_epsilon_to_the_variance():
    norm = functools.partial(nnx.LayerNorm, epsilon=0.1)
    layer, x = FeedForward(6, factor=2, norm=norm, rngs=nnx.Rngs(0)), 0.3 * normal(0, 2, 4, 6)
    wide = np.asarray(x, np.float64)
    normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 0.1)
    expanded = layer.expand(jnp.asarray(normed))
    np.testing.assert_allclose(layer(x), layer.project(jax.nn.silu(expanded)), atol=1e-6)


@pytest.mark.parametrize("kind", [RelativeAttention, RotaryAttention])
@pytest.mark.parametrize("frames", [pytest.param(8, marks=pytest.mark.slow), 7])
def test_attention_in_blocks_of_queries_equals_all_at_once(kind, frames, monkeypatch):
    layer = kind(8, heads=2, rngs=nnx.Rngs(0))
    x, weight = normal(0, 2, frames, 8), normal(1, 2, frames, 8)
    positions = relative_positions(frames, 8) if kind is RelativeAttention else None
    graphdef, params = nnx.split(layer)

    def total(params, x):
        return jnp.sum(weight * nnx.merge(graphdef, params)(x, positions, jnp.array([frames, 3])))

    at_once = jax.value_and_grad(total, (0, 1))(params, x)
    monkeypatch.setattr(attention, "BLOCK_FRAMES", 3)
    in_blocks = jax.value_and_grad(total, (0, 1))(params, x)
    for got, expected in zip(jax.tree.leaves(in_blocks), jax.tree.leaves(at_once)):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("kind", [RelativeAttention, RotaryAttention])
@pytest.mark.parametrize(
    "context, sees",
    [
        (Context(1, 3, 2), lambda q, t: q - 3 <= t <= q + 2),
        (Context(1, 0, 5), lambda q, t: q <= t <= q + 5),
        (Context(4, 1), lambda q, t: q // 4 - 1 <= t // 4 <= q // 4),
    ],
)
def test_attention_in_a_context_equals_attention_under_its_mask(kind, context, sees, monkeypatch):
    """Cover attention under the mask, in windows, and with a chunk size that is not static."""
    frames, lengths = 17, jnp.array([17, 9])
    layer = kind(8, heads=2, rngs=nnx.Rngs(0))
    if kind is RelativeAttention:
        layer.content_bias[...], layer.position_bias[...] = normal(1, 2, 4), normal(2, 2, 4)
    x = normal(0, 2, frames, 8)

    def positions(frames):
        return relative_positions(frames, 8) if kind is RelativeAttention else None

    run = lambda context: layer(x, positions(farthest_frames(frames, context)), lengths, context)
    attend = layer._attend(positions(frames)) if kind is RelativeAttention else _attend_rotated
    real = np.arange(frames) < lengths[:, None]
    mask = np.array([[sees(q, t) for t in range(frames)] for q in range(frames)]) & real[:, None]
    whole = attend(*layer._project(x), 0, jnp.asarray(mask))
    expected = layer.out(whole.reshape(x.shape))
    np.testing.assert_allclose(run(context)[real], expected[real], atol=1e-5)
    monkeypatch.setattr(attention, "BLOCK_FRAMES", 5)
    np.testing.assert_allclose(run(context)[real], expected[real], atol=1e-5)
    drawn = context._replace(chunk_frames=jnp.int32(context.chunk_frames))
    np.testing.assert_allclose(run(drawn)[real], expected[real], atol=1e-5)


@pytest.mark.parametrize("kind", ["relative", "rotary"])
def test_block_without_frames_returns_finite_values(kind):
    block = ConformerBlock(
        8,
        attention=kind,
        heads=2,
        feedforward_factor=2,
        kernel_frames=3,
        dropout=0.1,
        rngs=nnx.Rngs(0),
    )
    positions = relative_positions(4, 8) if kind == "relative" else None
    out = block(jnp.zeros((1, 4, 8)), positions, jnp.array([0]))
    assert jnp.isfinite(out).all()


def test_dropout_drops_its_fraction_and_keeps_the_mean():
    x = jnp.ones((200, 1001))
    dropped = dropout(x, 0.25, jax.random.key(0))
    assert abs(float(jnp.mean(dropped == 0)) - 0.25) < 0.01
    np.testing.assert_allclose(jnp.unique(dropped), [0, 1 / 0.75], rtol=1e-6)
    assert abs(float(dropped.mean()) - 1) < 0.01
    # Elements that share a word of the generator are still independent.
    zeros = np.asarray(dropped == 0, float)
    assert abs(np.corrcoef(zeros[:, 0:-1:4].ravel(), zeros[:, 1::4].ravel())[0, 1]) < 0.02


def test_dropout_of_neighbors_and_of_other_keys_is_independent():
    x, p, root = jnp.ones((64, 50, 96)), 0.25, jax.random.key(7)
    mask = lambda n: np.asarray(dropout(x, p, jax.random.fold_in(root, n)) == 0)
    ours, others = mask(0), [mask(n) for n in (1, 2, 3)]
    pairs = [(ours, other) for other in others]
    for axis in range(3):
        for lag in (1, 2, 4, 8):
            size = ours.shape[axis]
            pairs.append((ours.take(range(lag, size), axis), ours.take(range(size - lag), axis)))
    for first, second in pairs:
        both, n = np.mean(first & second), first.size
        assert abs(both - p * p) < 4 * np.sqrt(p * p * (1 - p * p) / n)


def test_dropout_without_key_or_probability_changes_nothing():
    x = normal(0, 3, 5)
    np.testing.assert_array_equal(dropout(x, 0.5, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)
