"""A stream gives the same words as the whole recording with the same chunks."""

import dataclasses
import io
import types
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.audio.samples import as_wav
from asr_jax.commands import transcribe_stream
from asr_jax.config import (
    Config,
    DecodingConfig,
    EncoderConfig,
    FeaturesConfig,
    JointConfig,
    MeshConfig,
    ObjectiveConfig,
    PredictorConfig,
)
from asr_jax.decoding.greedy import greedy_search, greedy_start, greedy_step
from asr_jax.decoding.stream import encode_chunk, start_samples
from asr_jax.distributed.mesh import make_mesh
from asr_jax.features.logmel import log_mel
from asr_jax.inference.recognizer import Recognizer, recognize_utterances
from asr_jax.inference.streaming import _chunks, recognize_stream
from asr_jax.models.encoder import Encoder
from asr_jax.models.transducer import Transducer
from asr_jax.text import Tokenizer
from asr_jax.types import InMemory, Utterance

RATE_HZ = 16_000


def config_of(
    objective: str, predictor: str = "stateless", layout: str = "kaldi", **encoder: object
) -> Config:
    sizes = dict(layers=1, width=8, heads=2, kernel_frames=3, subsampling_channels=2)
    return Config(
        features=FeaturesConfig(layout=layout, normalization="none", mel_bins=16),
        encoder=EncoderConfig(**sizes | dict(chunk_ms=(320.0,), left_chunks=2) | encoder),
        predictor=PredictorConfig(kind=predictor, embedding_width=6, width=7),
        joint=JointConfig(width=9),
        objective=ObjectiveConfig(kind=objective, durations=(0, 1, 3)),
        decoding=DecodingConfig(chunk_ms=320.0),
    )


def transducer(config: Config, vocabulary_size: int) -> Transducer:
    """Make a model with larger weights, so that some frames emit no label and some several."""
    model = Transducer(config, vocabulary_size, rngs=nnx.Rngs(1))
    model.joint.encoder_projection.kernel[...] *= 10
    model.joint.out.kernel[...] *= 5
    bias = model.joint.out.bias
    bias[...] = jnp.zeros(bias.shape).at[0].set(1.0)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["transducer", "tdt", "hat"])
@pytest.mark.parametrize("predictor", ["stateless", "lstm"])
def test_greedy_search_by_chunks_equals_the_search_of_the_whole(objective, predictor):
    model = transducer(config_of(objective, predictor), 5)
    lengths = np.array([23, 8, 12, 0])
    encoded = jax.random.normal(jax.random.key(0), (4, 24, 8))
    search = dict(max_symbols_per_frame=3)
    whole = jax.jit(lambda *given: greedy_search(model, *given, **search))(encoded, lengths)
    step = jax.jit(lambda *given: greedy_step(model, *given, **search))
    state, found, scores = greedy_start(model, 4), [[] for _ in lengths], np.zeros(4)
    for start in range(0, 24, 4):
        chunk = encoded[:, start : start + 4]
        state, of_chunk = step(state, chunk, jnp.clip(lengths - start, 0, 4))
        scores += of_chunk.scores[:, 0]
        for row, count in enumerate(of_chunk.counts[:, 0]):
            at = (row, 0, slice(int(count)))
            frames = of_chunk.frames[at] + start
            found[row] += zip(of_chunk.labels[at].tolist(), frames.tolist())
    for row, count in enumerate(whole.counts[:, 0]):
        at = (row, 0, slice(int(count)))
        assert found[row] == list(zip(whole.labels[at].tolist(), whole.frames[at].tolist()))
    assert sum(map(len, found)) > 5
    np.testing.assert_allclose(scores, whole.scores[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    "features, encoder",
    [
        (dict(layout="nemo"), dict(subsampling_factor=8, subsampling_padding="causal")),
        (dict(window_ms=40.0), dict(subsampling_padding="causal")),
        pytest.param(dict(layout="nemo", window_ms=10.0), {}, marks=pytest.mark.slow),
    ],
)
def test_chunks_have_the_features_of_the_whole_recording(features, encoder, monkeypatch):
    encoder = EncoderConfig(layers=1, width=4, heads=1, subsampling_channels=1, **encoder)
    factor, lead = encoder.subsampling_factor, encoder.subsampling_lead
    features = FeaturesConfig(normalization="none", mel_bins=8, **features)
    config = Config(
        features=features,
        encoder=dataclasses.replace(encoder, chunk_ms=(10.0 * factor,)),
        decoding=DecodingConfig(chunk_ms=10.0 * factor),
    )
    model = Transducer(config, 3, rngs=nnx.Rngs(0))

    def pass_on(self, state, mel, lengths):
        return state._replace(seen=state.seen + -(-lengths // factor)), mel, lengths

    monkeypatch.setattr(Encoder, "step", pass_on)
    step = jax.jit(lambda *given: encode_chunk(model, *given, config=config))
    lengths = (160 * 2 * factor, 160 * 2 * factor - 1, 160 * (2 * factor - lead) + 79, 2000, 400, 3)
    random = np.random.default_rng(0).normal(size=(len(lengths), max(lengths)))
    samples = 0.1 * random.astype(np.float32)
    whole, frames = jax.jit(log_mel, static_argnums=2)(samples, np.array(lengths), features)
    for row, length in enumerate(lengths):
        state, found, total = model.encoder.start(1, chunk_frames=1), [], 0
        pieces = np.split(samples[row, :length], range(97, length, 97))
        for chunk in _chunks(pieces, config):
            given = np.where(np.arange(len(chunk.samples)) < chunk.length, chunk.samples, 9)
            # Samples before the recording may be anything.
            ahead = start_samples(config) - len(found) * 160 * factor
            given[: max(0, ahead)] = 9
            state, mel, real = step(state, np.float32(given)[None], chunk.length[None])
            assert real > 0
            found.append(mel[0])
            total += int(real[0])
        assert (bool(found) and chunk.is_last) == (frames[row] > 0)
        assert total == (frames[row] + lead if found else 0)
        if found:
            mel = np.concatenate(found)[lead:total]
            np.testing.assert_allclose(mel, whole[row, : frames[row]], atol=1e-4)
            assert chunk.end_sample == length


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory) -> Recognizer:
    return make_recognizer(tmp_path_factory, config_of("transducer"))


def make_recognizer(tmp_path_factory, config: Config) -> Recognizer:
    path = tmp_path_factory.mktemp("tokenizer") / "model"
    tokenizer = Tokenizer.train(["ab", "a b", "ba b"], kind="char", vocabulary_size=5, path=path)
    graphdef, params = nnx.split(transducer(config, tokenizer.vocabulary_size))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Recognizer(config, tokenizer, graphdef, params, mesh, "random")


def tones(seconds: float) -> np.ndarray:
    """Return tones that change every 100 ms, with a noise.

    Without the noise, bins far from a tone hold the rounding of its energy, which is another one in
    frames of another program, and whose logarithm the random models amplify.
    """
    n = np.arange(round(seconds * RATE_HZ))
    rng = np.random.default_rng(0)
    pitch_hz, loudness = rng.uniform([[100], [0.001]], [[6000], [0.5]], (2, 99))
    of = n // (RATE_HZ // 10)
    sound = loudness[of] * np.sin(2 * np.pi * pitch_hz[of] * n / RATE_HZ)
    return (sound + 0.003 * rng.normal(size=len(n))).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout, encoder",
    [
        ("kaldi", {}),
        ("kaldi", dict(subsampling_padding="causal", subsampling="conv1d")),
        (
            "nemo",
            dict(subsampling="separable", subsampling_factor=8, subsampling_padding="causal")
            | dict(left_context_frames=9),
        ),
    ],
)
def test_streamed_words_equal_those_of_the_whole_recording(layout, encoder, tmp_path_factory):
    """Recordings have lengths around a chunk's, pieces have any size, and one is silent."""
    recognizer = make_recognizer(
        tmp_path_factory, config_of("transducer", layout=layout, **encoder)
    )
    recordings = [tones(seconds) for seconds in (2.0, 1.28, 1.285, 1.275, 0.33, 0.32, 0.05)]
    recordings += [np.zeros(RATE_HZ, np.float32), tones(7.0)[3 * RATE_HZ :]]
    utterances = [
        Utterance(str(n), Path("x"), "", len(one) / RATE_HZ, within=InMemory(as_wav(one, RATE_HZ)))
        for n, one in enumerate(recordings)
    ]
    expected = recognize_utterances(recognizer, utterances).best
    assert sum(len(one.words) for one in expected) > 20
    for n, (samples, whole) in enumerate(zip(recordings, expected)):
        size = (160, 1000, 7)[n % 3]
        pieces = [samples[at : at + size] for at in range(0, len(samples), size)]
        updates = list(recognize_stream(recognizer, pieces))
        words = [word for update in updates for word in update.final]
        assert [(w.text, w.start_seconds) for w in words] == [
            (w.text, w.start_seconds) for w in whole.words
        ]
        assert [w.confidence for w in words] == pytest.approx(
            [w.confidence for w in whole.words], abs=2e-4
        )
        assert updates[-1].partial == "" and updates[-1].seconds == pytest.approx(
            len(samples) / RATE_HZ
        )
    assert list(recognize_stream(recognizer, [])) == []


@pytest.mark.slow
def test_raw_samples_are_read_from_standard_input(recognizer, capsys):
    contents = (tones(1.0) * 2**15).astype("<i2").tobytes() + b"x"
    stdin = types.SimpleNamespace(buffer=io.BytesIO(contents))
    with mock.patch.object(transcribe_stream.sys, "stdin", stdin):
        transcribe_stream.stream_source(Path("-"), recognizer, as_json=False)
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].startswith("-\t") and len(out.splitlines()) > 1
    assert err.startswith("4 chunks of 320 ms; latency after the end of a chunk: median ")

    # Ctrl-C ends the stream like its end.
    reads = [contents[:20_000], contents[20_000:-1], KeyboardInterrupt]
    stdin = types.SimpleNamespace(buffer=mock.Mock(read=mock.Mock(side_effect=reads)))
    with mock.patch.object(transcribe_stream.sys, "stdin", stdin):
        transcribe_stream.stream_source(Path("-"), recognizer, as_json=False)
    assert capsys.readouterr().out.splitlines()[-1] == out.splitlines()[-1]


@pytest.mark.slow
def test_configs_that_cannot_stream_are_rejected(recognizer):
    def refused(**changes):
        config = Config(**changes)
        with pytest.raises(ValueError, match="^--stream: ") as caught:
            transcribe_stream.streaming(recognizer._replace(config=config))
        return str(caught.value)

    assert "needs a transducer, tdt or hat model" in refused(
        objective=ObjectiveConfig(kind="ctc", ctc_weight=0.0)
    )
    assert "not trained for streaming" in refused()
    chunks = dict(features=recognizer.config.features, encoder=recognizer.config.encoder)
    assert "--decoder greedy" in refused(**chunks, decoding=DecodingConfig(beam=4))
    assert transcribe_stream.streaming(recognizer).config.decoding.chunk_ms == 320
    with mock.patch.dict("sys.modules", {"sounddevice": None}):
        with pytest.raises(ValueError, match="^AUDIO microphone: needs sounddevice"):
            next(transcribe_stream._pieces(Path("microphone"), recognizer))
