"""onnxruntime and the released sherpa-onnx find the labels of the JAX model, in every layout."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("onnx", reason="of the extra `export`")
pytest.importorskip("onnxruntime", reason="of the extra `export`")
pytest.importorskip("sherpa_onnx", reason="of the extra `export`")

import onnx

from asr_jax.commands.export.write_sherpa_onnx import transcripts
from asr_jax.config import DecodingConfig, FeaturesConfig, ObjectiveConfig, PredictorConfig
from asr_jax.decoding.greedy import greedy_search
from asr_jax.export import nemo_layout, sherpa_onnx
from asr_jax.export.onnx_check import compare, open_runtime
from asr_jax.features.logmel import log_mel
from asr_jax.text import UNKNOWN_ID, Tokenizer

pytestmark = pytest.mark.slow
RANDOM = np.random.default_rng(0)
# Noise of changing loudness, then silence; both are multiples of chunks of 1280 samples.
RECORDINGS = [
    np.pad(
        RANDOM.normal(size=n) * np.repeat(RANDOM.uniform(0.01, 0.3, 50), n // 50), (0, 2560)
    ).astype(np.float32)
    for n in (19_200, 12_800, 6_400)
]
SHORT = (1, 79, 80, 161, 700)
PLAIN = FeaturesConfig(normalization="none")
LSTM = PredictorConfig(kind="lstm", width=7, embedding_width=5)
TWO_LAYERS = PredictorConfig(kind="lstm", layers=2, width=7, embedding_width=5)
STATELESS = PredictorConfig(context=3, width=7, embedding_width=5)
STREAM = dict(chunk_ms=(80.0,), left_chunks=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "m"
    return Tokenizer.train(["a bad cab", "die hexe"], kind="char", vocabulary_size=0, path=path)


@pytest.mark.parametrize(
    "features, predictor, encoder, objective",
    [
        (nemo_layout.FEATURES, LSTM, {}, "transducer"),
        (nemo_layout.FEATURES, TWO_LAYERS, dict(subsampling_factor=8), "tdt"),
        (nemo_layout.FEATURES, STATELESS, dict(subsampling_factor=8), "transducer"),
        (PLAIN, STATELESS, STREAM | dict(attention="rotary", left_context_frames=5), "transducer"),
        # The cached features are more than the cached frames of a convolution.
        (PLAIN, STATELESS, STREAM | dict(attention="relative", kernel_frames=3), "transducer"),
    ],
)
def test_exported_files_find_the_labels_of_the_model(
    features, predictor, encoder, objective, small_model, tokenizer, tmp_path
):
    vocabulary = tokenizer.vocabulary_size
    is_stream = "chunk_ms" in encoder
    config, graphdef, params = small_model(
        dict(layers=2, subsampling="separable", feedforward_factor=4) | encoder,
        vocabulary=vocabulary,
        noise=0.5,
        features=features,
        predictor=predictor,
        objective=ObjectiveConfig(kind=objective),
        decoding=DecodingConfig(chunk_ms=80.0 if is_stream else 0.0),
    )
    # The model finds several labels with blanks between them, but never the unknown label, which
    # sherpa-onnx writes differently.
    params["joint"]["out"]["kernel"] *= 3
    params["joint"]["out"]["bias"][UNKNOWN_ID] = -99
    params["joint"]["out"]["bias"][UNKNOWN_ID + 1 : vocabulary] -= 2
    model = nnx.merge(graphdef, params)
    bound = sherpa_onnx.max_symbols_per_frame(config)

    @jax.jit
    def in_process(samples, lengths):
        mel = log_mel(samples, lengths, config.features)
        encoded = model.encoder(*mel, chunk_frames=2 if is_stream else 0)
        return greedy_search(model, *encoded, max_symbols_per_frame=bound)

    lengths = np.array([*map(len, RECORDINGS)], np.int32)
    samples = np.stack([np.pad(r, (0, max(lengths) - len(r))) for r in RECORDINGS])
    best = in_process(samples, lengths)
    expected = [row[:n].tolist() for row, n in zip(best.labels[:, 0], best.counts[:, 0])]
    assert sum(map(bool, expected)) > 1 and len(set(sum(expected, []))) > 2

    sherpa_onnx.write(tmp_path, config, params, tokenizer)
    sherpa_onnx.quantize(tmp_path)
    runtime = open_runtime(tmp_path, config, suffix="", vocabulary=vocabulary)
    compared = compare(runtime, graphdef, params, config, RECORDINGS, vocabulary=vocabulary)
    assert compared.labels == expected
    assert max(compared.encoded, compared.logits) < 1e-5

    lines = (tmp_path / "tokens.txt").read_text().splitlines()
    blank = 0 if features is PLAIN else vocabulary - 1
    assert len(lines) == vocabulary and lines[blank] == f"<blk> {blank}"
    texts = transcripts(tmp_path, "", RECORDINGS, config)
    # The random model emits more spaces than there are between words.
    words = [text.split() for text in texts]
    assert words == [tokenizer.decode(labels).split() for labels in expected]
    assert any(transcripts(tmp_path, ".int8", RECORDINGS, config))
    # Recordings shorter than a chunk, an encoded frame, a frame of log-mel, and half a hop.
    for suffix in ("", ".int8"):
        assert len(transcripts(tmp_path, suffix, [RECORDINGS[0][:n] for n in SHORT], config)) == 5
    if not is_stream:
        _, frames = runtime.encode(
            np.zeros((2, 0, features.mel_bins), np.float32), np.zeros(2, int)
        )
        assert frames.tolist() == [0, 0]
    for part in sherpa_onnx.PARTS:
        assert types_of_matrices(tmp_path / f"{part}.int8.onnx") == {"UINT8"}


def types_of_matrices(path: Path) -> set[str]:
    """Return the types of quantized matrices: signed ones overflow without VNNI."""
    graph = onnx.load(path).graph
    types = {x.name: onnx.TensorProto.DataType.Name(x.data_type) for x in graph.initializer}
    return {types[node.input[1]] for node in graph.node if node.op_type == "MatMulInteger"}
