"""Programs that were written and loaded equal their models, for any batch and length."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("flatbuffers", reason="of the extra `export`")

from asr_jax.commands.export.write_stablehlo import chunks, padded
from asr_jax.config import DecodingConfig, ObjectiveConfig, PredictorConfig
from asr_jax.decoding.search import search
from asr_jax.export import stablehlo
from asr_jax.export.format_version import ArtifactError
from asr_jax.features.logmel import log_mel

pytestmark = pytest.mark.slow
RANDOM = np.random.default_rng(0)


@pytest.fixture
def make(small_model, sizes_may_be_symbols):
    def make(encoder: dict, **sections):
        """Make a model whose blank is unlikely enough for labels to be found."""
        config, graphdef, params = small_model(encoder, **sections)
        if "joint" in params:
            params["joint"]["out"]["bias"][0] -= 2
        return config, graphdef, params

    return make


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
                predictor=PredictorConfig(kind="lstm", layers=2, width=7, embedding_width=5),
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
def test_programs_equal_the_model(encoder, sections, make, tmp_path):
    config, graphdef, params = make(encoder, **sections)
    programs = stablehlo.programs(graphdef, params, config)
    stablehlo.write(tmp_path, programs, stablehlo.flat(params), config)
    written, flat = stablehlo.load(tmp_path)
    model = nnx.merge(graphdef, params)
    chunk = 2 if config.decoding.chunk_ms else 0

    @jax.jit
    def in_process(samples, lengths):
        features = log_mel(samples, lengths, config.features)
        encoded, frames = model.encoder(*features, chunk_frames=chunk)
        return encoded, frames, search(model, encoded, frames, config=config.decoding)

    frame = stablehlo.frame_samples(config)
    labels_found = 0
    for lengths in ([9 * frame - 60, 4000, 700], [2 * frame]):
        lengths = np.array(lengths, np.int32)
        samples = RANDOM.normal(size=(len(lengths), -(-max(lengths) // frame) * frame)) * 0.1
        samples = samples.astype(np.float32)
        encoded, frames, expected = in_process(samples, lengths)
        labels, counts, at = written["recognize"](flat, samples, lengths)
        labels_found += int(counts.sum())
        np.testing.assert_array_equal(labels, expected.labels[:, 0])
        np.testing.assert_array_equal(counts, expected.counts[:, 0])
        np.testing.assert_array_equal(at, expected.frames[:, 0])

        actual, actual_frames = written["encode"](flat, samples, lengths)
        np.testing.assert_array_equal(actual_frames, frames)
        if "joint" not in params:
            assert written.keys() == {"recognize", "encode"}
            np.testing.assert_allclose(actual, encoded, atol=1e-5)
            continue
        np.testing.assert_allclose(actual, model.joint.encoder_projection(encoded), atol=1e-5)
        state, _ = written["start"](flat, lengths)
        _, predicted = written["step"](flat, state, np.full(len(lengths), 3, np.int32))
        expected_state = model.predictor.step(model.predictor.start(len(lengths)), lengths * 0 + 3)
        projected = model.joint.predictor_projection(model.predictor.output(expected_state))
        np.testing.assert_allclose(predicted, projected, atol=1e-6)
        scores = written["join"](flat, actual[:, 1], predicted)
        expected_scores = model.joint.scores(actual[:, 1], projected)
        for pair in zip(scores, expected_scores, strict=True):
            np.testing.assert_allclose(*pair, atol=1e-5)
    assert labels_found


def test_a_program_runs_on_every_platform(make, tmp_path):
    config, graphdef, params = make(dict(subsampling="conv1d", layers=1))
    programs = stablehlo.programs(graphdef, params, config)
    stablehlo.write(tmp_path, {"join": programs["join"]}, stablehlo.flat(params), config)
    exported = jax.export.deserialize(bytearray((tmp_path / "join.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
    "objective, predictor, encoder",
    [
        (
            "transducer",
            PredictorConfig(width=7, embedding_width=5),
            dict(attention="rotary", subsampling_padding="causal"),
        ),
        ("tdt", PredictorConfig(kind="lstm", layers=3, width=7, embedding_width=5), {}),
        ("hat", PredictorConfig(width=7, embedding_width=5), dict(subsampling_factor=8)),
    ],
)
def test_chunks_give_the_labels_of_whole_recordings(objective, predictor, encoder, make, tmp_path):
    """Streams end at different times: within a chunk, at its end, and just after it."""
    config, graphdef, params = make(
        dict(subsampling="conv1d", chunk_ms=(160.0,), layers=2) | encoder,
        decoding=DecodingConfig(chunk_ms=160.0),
        objective=ObjectiveConfig(kind=objective, durations=(0, 1, 3)),
        predictor=predictor,
    )
    programs = stablehlo.programs(graphdef, params, config)
    stablehlo.write(tmp_path, programs, stablehlo.flat(params), config)
    written, flat = stablehlo.load(tmp_path)
    about = json.loads((tmp_path / "about.json").read_text())
    frame = about["frame_samples"]
    assert about["chunk_samples"] == 2560 and about["hop_samples"] == 160
    lead = 480 if "subsampling_padding" in encoder else 0
    assert about["before_samples"] == about["after_samples"] == 160
    assert about["start_samples"] == 160 + lead
    recordings = [
        0.1 * RANDOM.normal(size=n).astype(np.float32)
        for n in (9_000, 2560, 5120 + 90, 700, 50, 1, 0)
    ]
    for batch in (recordings, recordings[:1], recordings[-1:]):
        samples, lengths = padded(batch, config)
        labels, counts, at = written["recognize"](flat, samples, lengths)
        expected = [
            [*zip(row[:n].tolist(), frames[:n].tolist())]
            for row, frames, n in zip(labels, at, counts)
        ]
        all_encoded, all_frames = written["encode"](flat, samples, lengths)
        state = written["start_stream"](flat, lengths)
        found = [[] for _ in batch]
        for number, (chunk, chunk_lengths) in enumerate(chunks(batch, config)):
            # Samples before a stream and after its end may have any values.
            chunk = np.where(np.arange(chunk.shape[1]) < chunk_lengths[:, None], chunk, 9)
            chunk[:, : about["start_samples"]] += 9 * (number == 0)
            _, encoded, frames = written["encode_chunk"](flat, state, chunk, chunk_lengths)
            state, labels, counts, at = written["recognize_chunk"](
                flat, state, chunk, chunk_lengths
            )
            first = number * about["chunk_samples"] // frame
            for row, of_row in enumerate(found):
                n = int(counts[row])
                of_row += zip(labels[row, :n].tolist(), (at[row, :n] + first).tolist())
                n = int(frames[row])
                assert n == np.clip(all_frames[row] - first, 0, encoded.shape[1])
                expected_frames = all_encoded[row, first : first + n]
                np.testing.assert_allclose(encoded[row, :n], expected_frames, atol=1e-5)
        assert found == expected and any(found) == any(map(len, batch))


def test_programs_of_another_version_are_rejected(make, tmp_path, monkeypatch):
    config, graphdef, params = make(dict(subsampling="conv1d", layers=1))
    programs = stablehlo.programs(graphdef, params, config)
    stablehlo.write(tmp_path, {"join": programs["join"]}, stablehlo.flat(params), config)

    def message():
        with pytest.raises(ArtifactError) as error:
            stablehlo.load(tmp_path)
        assert "\n" not in str(error.value)
        return str(error.value)

    convention = jax.export.deserialize(
        bytearray((tmp_path / "join.stablehlo").read_bytes())
    ).calling_convention_version
    name = "minimum_supported_calling_convention_version"
    monkeypatch.setattr(jax.export, name, convention + 1)
    assert f"written by JAX {jax.__version__}, calling convention {convention}" in message()
    about = json.loads((tmp_path / "about.json").read_text())
    (tmp_path / "about.json").write_text(json.dumps(about | {"version": "0"}))
    assert "written by asr_jax, version 0; this is asr_jax, version 1" in message()
    (tmp_path / "about.json").unlink()
    assert "written by something else, version unknown" in message()
