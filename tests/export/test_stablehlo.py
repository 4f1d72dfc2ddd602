"""Programs that were written and read again are the models, for any batch and length."""

import jax
import jaxtyping
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("flatbuffers", reason="of the extra `export`")

from asr_jax.config import (
    Config,
    DecodingConfig,
    EncoderConfig,
    FeaturesConfig,
    JointConfig,
    ObjectiveConfig,
    PredictorConfig,
)
from asr_jax.decoding.search import search
from asr_jax.export import stablehlo
from asr_jax.features.logmel import log_mel
from asr_jax.models.composition import make_model

pytestmark = pytest.mark.slow
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def sizes_may_be_symbols():
    """Annotations say int, which a size that is left open is not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def make(encoder: dict, **sections):
    config = Config(
        features=FeaturesConfig(mel_bins=20, normalization="none"),
        encoder=EncoderConfig(
            **(
                dict(width=12, heads=2, kernel_frames=5, subsampling_channels=6, layers=4)
                | dict(feedforward_factor=2, left_chunks=2)
                | encoder
            )
        ),
        joint=JointConfig(width=9),
        **{"predictor": PredictorConfig(width=7, embedding_width=5), **sections},
    )
    graphdef, params = nnx.split(make_model(config, 11, rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(
        lambda a: np.asarray(a) + 0.1 * RANDOM.normal(size=a.shape).astype(np.float32),
        nnx.to_pure_dict(params),
    )
    if "joint" in params:
        # Less of the blank, lest nothing should be found.
        params["joint"]["out"]["bias"][0] -= 2
    return config, graphdef, params


@pytest.mark.parametrize(
    "encoder, sections",
    [
        (dict(subsampling="conv1d"), {}),
        (
            dict(attention="rotary", shared_layers=2, residual_rank=3),
            dict(decoding=DecodingConfig(beam=2)),
        ),
        (
            dict(kind="transformer", subsampling="separable", context_frames=(3, 2))
            | dict(subsampling_factor=8, shared_layers=4),
            dict(
                objective=ObjectiveConfig(kind="tdt"),
                predictor=PredictorConfig(kind="lstm", width=7, embedding_width=5),
            ),
        ),
        (
            dict(subsampling="conv1d", chunk_ms=(0.0, 80.0)),
            dict(
                decoding=DecodingConfig(chunk_ms=80.0),
                objective=ObjectiveConfig(kind="hat"),
                predictor=PredictorConfig(context=1, width=7, embedding_width=5),
            ),
        ),
        (
            dict(kind="transformer", attention="rotary", subsampling="conv1d"),
            dict(objective=ObjectiveConfig(kind="ctc")),
        ),
    ],
)
def test_programs_are_the_model(encoder, sections, tmp_path):
    config, graphdef, params = make(encoder, **sections)
    programs = stablehlo.programs(graphdef, params, config)
    stablehlo.write(tmp_path, programs, stablehlo.flat(params))
    written, flat = stablehlo.load(tmp_path)
    model = nnx.merge(graphdef, params)
    chunk = 2 if config.decoding.chunk_ms else 0

    @jax.jit
    def in_process(samples, lengths):
        features = log_mel(samples, lengths, config.features)
        encoded, frames = model.encoder(*features, chunk_frames=chunk)
        return encoded, frames, search(model, encoded, frames, config=config.decoding)

    whole = stablehlo.frame_samples(config)
    labels_found = 0
    for lengths in ([9 * whole - 60, 4000, 700], [2 * whole]):
        lengths = np.array(lengths, np.int32)
        samples = RANDOM.normal(size=(len(lengths), -(-max(lengths) // whole) * whole)) * 0.1
        samples = samples.astype(np.float32)
        encoded, frames, expected = in_process(samples, lengths)
        labels, counts, at = written["recognize"](flat, samples, lengths)
        labels_found += int(counts.sum())
        np.testing.assert_array_equal(labels, expected.labels[:, 0])
        np.testing.assert_array_equal(counts, expected.counts[:, 0])
        np.testing.assert_array_equal(at, expected.frames[:, 0])

        found, found_frames = written["encode"](flat, samples, lengths)
        np.testing.assert_array_equal(found_frames, frames)
        if "joint" not in params:
            assert written.keys() == {"recognize", "encode"}
            np.testing.assert_allclose(found, encoded, atol=1e-5)
            continue
        np.testing.assert_allclose(found, model.joint.encoder_projection(encoded), atol=1e-5)
        state, _ = written["start"](flat, lengths)
        _, predicted = written["step"](flat, state, np.full(len(lengths), 3, np.int32))
        expected_state = model.predictor.step(model.predictor.start(len(lengths)), lengths * 0 + 3)
        projected = model.joint.predictor_projection(model.predictor.output(expected_state))
        np.testing.assert_allclose(predicted, projected, atol=1e-6)
        scores = written["join"](flat, found[:, 1], predicted)
        for one, other in zip(scores, model.joint.scores(found[:, 1], projected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    assert labels_found


def test_a_program_is_for_every_platform(tmp_path):
    config, graphdef, params = make(dict(subsampling="conv1d", layers=1))
    programs = stablehlo.programs(graphdef, params, config)
    stablehlo.write(tmp_path, {"join": programs["join"]}, stablehlo.flat(params))
    exported = jax.export.deserialize(bytearray((tmp_path / "join.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
