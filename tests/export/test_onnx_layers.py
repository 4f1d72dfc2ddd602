"""Graphs in onnxruntime compute the outputs of the JAX models, whatever the padding holds."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("onnx", reason="of the extra `export`")
pytest.importorskip("onnxruntime", reason="of the extra `export`")

import onnx
import onnxruntime

from asr_jax.config import DecodingConfig, JointConfig
from asr_jax.export import onnx_layers as layers
from asr_jax.export.onnx_graph import Graph
from asr_jax.features.logmel import VARIANCE_FLOOR
from asr_jax.models.predictor import NONE_ID

pytestmark = pytest.mark.slow
RANDOM = np.random.default_rng(0)
LENGTHS = np.array([77, 50, 9])
BINS = 20


def random(*shape) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def run(g: Graph, path, *arrays) -> list[np.ndarray]:
    g.save(path, {})
    session = onnxruntime.InferenceSession(path)
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


@pytest.mark.parametrize(
    "encoder, chunk_ms",
    [
        (dict(attention="rotary", subsampling="conv1d"), 0.0),
        (dict(shared_layers=2, residual_rank=3, norm_epsilon=0.1), 0.0),
        (
            dict(kind="transformer", shared_layers=4, context_frames=(3, 2))
            | dict(subsampling_padding="causal")
            | dict(subsampling="separable", subsampling_factor=8),
            0.0,
        ),
        (
            dict(kind="transformer", attention="rotary")
            | dict(subsampling="conv1d", subsampling_factor=8),
            0.0,
        ),
        (
            dict(convolution_norm="affine", bias=False, left_context_frames=3)
            | dict(subsampling_padding="causal")
            | dict(subsampling="conv1d", chunk_ms=(0.0, 80.0)),
            80.0,
        ),
    ],
)
def test_encoder_equals_jax(encoder, chunk_ms, small_model, tmp_path):
    config, graphdef, params = small_model(encoder, decoding=DecodingConfig(chunk_ms=chunk_ms))
    model = nnx.merge(graphdef, params)
    g = Graph()
    x = g.input("x", np.float32, ("N", "T", BINS))
    lengths = g.input("x_lens", np.int64, ("N",))
    encoded, frames = layers.encoder(g, config, params["encoder"], x, lengths)
    g.output("encoded", encoded, np.float32, ("N", "T2", 12))
    g.output("frames", frames, np.int64, ("N",))
    features = random(3, 77, BINS)
    expected, expected_frames = model.encoder(
        jnp.asarray(features), jnp.asarray(LENGTHS), chunk_frames=2 if chunk_ms else 0
    )
    for rubbish in (0.0, 1e3):
        features[np.arange(77) >= LENGTHS[:, None]] = rubbish
        encoded, frames = run(g, tmp_path / "g.onnx", features, LENGTHS)
        np.testing.assert_array_equal(frames, expected_frames)
        np.testing.assert_allclose(encoded, expected, atol=1e-5)
    # A batch of one with another length.
    (encoded, _) = run(g, tmp_path / "g.onnx", features[2:, :9], LENGTHS[2:])
    np.testing.assert_allclose(encoded, expected[2:, : encoded.shape[1]], atol=1e-5)


def test_shared_matrices_are_stored_once(small_model, tmp_path):
    _, _, params = small_model(dict(shared_layers=2, residual_rank=3))
    g = Graph()
    kernel = params["encoder"]["blocks"]["attention"]["query"]["kernel"]
    x = g.input("x", np.float32, ("N", 12))
    for layer in (0, 0, 1):
        x = g("MatMul", x, kernel[layer])
    g.output("out", x, np.float32, ("N", 12))
    g.save(tmp_path / "g.onnx", {})
    assert len(onnx.load(tmp_path / "g.onnx").graph.initializer) == 2


def test_normalization_uses_only_real_frames(tmp_path):
    g = Graph()
    x = g.input("x", np.float32, ("N", "T", BINS))
    lengths = g.input("x_lens", np.int64, ("N",))
    g.output("normal", layers.normalized(g, x, lengths), np.float32, ("N", "T", BINS))
    features = 3 * random(3, 77, BINS) - 20
    (normal,) = run(g, tmp_path / "g.onnx", features, LENGTHS)
    for row, length in enumerate(LENGTHS):
        real = features[row, :length].astype(np.float64)
        expected = (real - real.mean(0)) / np.sqrt(real.var(0) + VARIANCE_FLOOR)
        np.testing.assert_allclose(normal[row, :length], expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_predictor_and_joint_equal_jax(activation, small_model, tmp_path):
    config, graphdef, params = small_model({}, joint=JointConfig(width=9, activation=activation))
    model = nnx.merge(graphdef, params)
    g = Graph()
    labels = g.input("y", np.int64, ("N", 3))
    g.output(
        "out", layers.stateless_predictor(g, params["predictor"], labels), np.float32, ("N", 7)
    )
    contexts = np.array([[NONE_ID, NONE_ID, 0], [NONE_ID, 0, 4], [10, 3, 10]])
    (predicted,) = run(g, tmp_path / "p.onnx", contexts)
    np.testing.assert_allclose(predicted, model.predictor.output(jnp.asarray(contexts)), atol=1e-6)

    g = Graph()
    sides = [g.input(name, np.float32, ("N", 9)) for name in ("encoded", "predicted")]
    g.output("logit", layers.joint(g, config, params["joint"], *sides), np.float32, ("N", 11))
    encoded, predicted = random(5, 9), random(5, 9)
    (logits,) = run(g, tmp_path / "j.onnx", encoded, predicted)
    expected = model.joint(jnp.asarray(encoded), jnp.asarray(predicted))
    np.testing.assert_allclose(logits, expected, atol=1e-6)
