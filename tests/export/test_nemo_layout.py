"""NeMo's layout: onnxruntime and the released sherpa-onnx search as the JAX model does."""

import jax
import numpy as np
import pytest
from flax import nnx

pytest.importorskip("onnx", reason="of the extra `export`")
pytest.importorskip("onnxruntime", reason="of the extra `export`")
pytest.importorskip("sherpa_onnx", reason="of the extra `export`")

from asr_jax.commands.export_sherpa_onnx import transcripts
from asr_jax.config import (
    Config,
    EncoderConfig,
    JointConfig,
    ObjectiveConfig,
    PredictorConfig,
)
from asr_jax.decoding.greedy import greedy_search
from asr_jax.export import nemo_layout, sherpa_onnx
from asr_jax.export.onnx_trial import compare, open_runtime
from asr_jax.features.logmel import log_mel
from asr_jax.models.composition import make_model
from asr_jax.text import UNKNOWN_ID, Tokenizer

pytestmark = pytest.mark.slow
RANDOM = np.random.default_rng(0)
RECORDINGS = [
    (RANDOM.normal(size=n) * np.repeat(RANDOM.uniform(0.01, 0.3, 50), n // 50)).astype(np.float32)
    for n in (24_000, 16_000, 8_000)
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "m"
    return Tokenizer.train(["a bad cab", "die hexe"], kind="char", vocabulary_size=0, path=path)


@pytest.mark.parametrize(
    "predictor, factor, objective",
    [
        (PredictorConfig(kind="lstm", width=7, embedding_width=5), 4, "transducer"),
        (PredictorConfig(kind="lstm", width=7, embedding_width=5), 8, "tdt"),
        (PredictorConfig(context=3, width=7, embedding_width=5), 8, "transducer"),
    ],
)
def test_it_searches_as_the_model_does(predictor, factor, objective, tokenizer, tmp_path):
    vocabulary = tokenizer.vocabulary_size
    config = Config(
        features=nemo_layout.FEATURES,
        encoder=EncoderConfig(
            **dict(layers=1, width=12, heads=2, kernel_frames=5, subsampling_channels=6),
            **dict(subsampling="separable", subsampling_factor=factor),
        ),
        predictor=predictor,
        joint=JointConfig(width=9),
        objective=ObjectiveConfig(kind=objective),
    )
    graphdef, params = nnx.split(make_model(config, vocabulary, rngs=nnx.Rngs(0)), nnx.Param)
    params = jax.tree.map(
        lambda a: np.asarray(a) + 0.5 * RANDOM.normal(size=a.shape).astype(np.float32),
        nnx.to_pure_dict(params),
    )
    # No unknown, which sherpa-onnx writes otherwise.
    params["joint"]["out"]["bias"][UNKNOWN_ID] = -99
    if objective == "tdt":
        # Fewer labels a frame than the bound, behind which sherpa-onnx goes on otherwise.
        params["joint"]["out"]["bias"][vocabulary] -= 2
    model = nnx.merge(graphdef, params)
    bound = sherpa_onnx.max_symbols_per_frame(config)

    @jax.jit
    def in_process(samples, lengths):
        encoded = model.encoder(*log_mel(samples, lengths, config.features))
        return greedy_search(model, *encoded, max_symbols_per_frame=bound)

    lengths = np.array([*map(len, RECORDINGS)], np.int32)
    samples = np.stack([np.pad(r, (0, max(lengths) - len(r))) for r in RECORDINGS])
    found = in_process(samples, lengths)
    expected = [row[:n].tolist() for row, n in zip(found.labels[:, 0], found.counts[:, 0])]
    assert sum(map(bool, expected)) > 1 and len(set(sum(expected, []))) > 2

    sherpa_onnx.write(tmp_path, config, params, tokenizer)
    sherpa_onnx.quantize(tmp_path)
    runtime = open_runtime(tmp_path, config, suffix="", vocabulary=vocabulary)
    compared = compare(runtime, graphdef, params, config, RECORDINGS, vocabulary=vocabulary)
    assert compared.labels == expected
    assert max(compared.encoded, compared.logits) < 1e-5

    lines = (tmp_path / "tokens.txt").read_text().splitlines()
    assert len(lines) == vocabulary and lines[-1] == f"<blk> {vocabulary - 1}"
    texts = transcripts(tmp_path, "", RECORDINGS, config)
    # Of spaces the random model makes more than there are between words.
    words = [text.split() for text in texts]
    assert words == [tokenizer.decode(labels).split() for labels in expected]
    assert any(transcripts(tmp_path, ".int8", RECORDINGS, config))
