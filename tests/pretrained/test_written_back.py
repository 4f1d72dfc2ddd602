"""Imported models that are written back: what transformers and NeMo had, bit for bit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
import yaml
from safetensors.numpy import load_file

from asr_jax.config import Config
from asr_jax.pretrained.nemo_archive import CONFIG, WEIGHTS, Archive
from asr_jax.pretrained.read_source import read_source
from asr_jax.pretrained.torch_checkpoint import read_checkpoint
from asr_jax.pretrained.writing.expressible import require_expressible
from asr_jax.pretrained.writing.nemo_files import write_archive
from asr_jax.pretrained.writing.sentencepiece_model import model_without_blank
from asr_jax.pretrained.writing.tensors import tensors
from asr_jax.pretrained.writing.transformers_folder import write_folder
from asr_jax.text import Tokenizer
from tests.pretrained.references import MODELS

# Tensors that take over others, or that others take over (pretrained/parameters.py).
FOLDED = (
    *("conv.norm.weight", "conv.norm.bias", "conv.norm.running_mean", "conv.norm.running_var"),
    *(
        "depthwise_conv.bias",
        "0.pointwise_conv.bias",
        "1.pointwise_conv.bias",
        "q_proj.bias",
        "k_proj.bias",
        "bias_u",
        "bias_v",
    ),
    *("layers.2.bias", "layers.3.bias", "layers.5.bias", "layers.6.bias"),
    *("subsampling.linear.weight", "subsampling.linear.bias", "decoder_projector.bias"),
    *("encoder_projector.bias", "bias_ih_l0", "bias_hh_l0", "bias_ih_l1", "bias_hh_l1"),
    "num_batches_tracked",
)


def imported(name: str):
    """Return a model, its parameters, and its tensors as they are written."""
    model = read_source(MODELS / name)
    params = {key: np.array(read(), np.float32) for key, read in model.parameters.items()}
    return model, params, tensors(params, model.config)


def assert_same_parameters(source, params) -> None:
    again = read_source(source).parameters
    assert again.keys() == params.keys()
    for key, value in params.items():
        np.testing.assert_array_equal(again[key](), value, err_msg=key)


@pytest.mark.parametrize("name", ["ctc", "rnnt", "tdt", "nemotron"])
def test_a_folder_of_transformers_has_the_tensors_of_its_source(name, tmp_path):
    model, params, written = imported(name)
    write_folder(tmp_path, written, model.config, model.tokenizer)
    original = load_file(MODELS / name / "model.safetensors")
    again = load_file(tmp_path / "model.safetensors")
    shapes = lambda tensors: {key: (x.shape, x.dtype) for key, x in tensors.items()}
    assert shapes(again) == shapes(original)
    unfolded = [key for key in original if not key.endswith(FOLDED)]
    assert len(unfolded) > 30
    for key in unfolded:
        np.testing.assert_array_equal(again[key], original[key], err_msg=key)
    assert_same_parameters(tmp_path, params)


@pytest.mark.parametrize("name", ["ctc", "rnnt", "tdt"])
def test_the_files_of_transformers_are_those_of_the_source(name, tmp_path):
    model, _, written = imported(name)
    write_folder(tmp_path, written, model.config, model.tokenizer)
    assert (tmp_path / "tokenizer.model").read_bytes() == (
        MODELS / name / "tokenizer.model"
    ).read_bytes()

    def fields(folder, file):
        return json.loads((folder / file).read_text(encoding="utf-8"))

    for file in ("config.json", "generation_config.json", "processor_config.json"):
        ours, theirs = fields(tmp_path, file), fields(MODELS / name, file)
        for part in (ours, theirs):
            # The factor is part of the weights.
            part.get("encoder_config", {}).pop("scale_input", None)
        assert ours == theirs
    ours, theirs = fields(tmp_path, "tokenizer.json"), fields(MODELS / name, "tokenizer.json")
    for part in ("model", "added_tokens", "normalizer", "pre_tokenizer", "decoder"):
        assert ours[part] == theirs[part]


@pytest.mark.parametrize("name", ["ctc", "rnnt", "tdt", "hybrid"])
def test_an_archive_has_the_names_and_values_of_its_source(name, tmp_path):
    model, params, written = imported(f"{name}.nemo")
    path = tmp_path / "model.nemo"
    # As in these archives, dropout precedes the output layer, which makes it the third.
    config = replace(model.config, joint=replace(model.config.joint, dropout=0.2))
    pieces = model.tokenizer.pieces[1:]
    write_archive(path, written, config, model_without_blank(model.tokenizer), pieces)
    original, again = (
        read_checkpoint(Archive(archive).stored(WEIGHTS))
        for archive in (MODELS / f"{name}.nemo", path)
    )
    features = {f"preprocessor.featurizer.{name}" for name in ("window", "fb")}
    assert again.keys() == original.keys() | features
    assert {k: again[k].shape for k in original} == {k: original[k].shape for k in original}
    filters = again["preprocessor.featurizer.fb"]
    assert filters.shape == (1, config.features.mel_bins, 257)
    # The names of the yaml are members of the archive.
    archive = Archive(path)
    named = yaml.safe_load(archive.read(CONFIG))["tokenizer"]
    for field in ("model_path", "vocab_path", "spe_tokenizer_vocab"):
        assert named[field].removeprefix("nemo:") in archive.names
    assert_same_parameters(path, params)
    assert read_source(path).config == model.config


def test_tokenizers_trained_here_lose_their_blank(tmp_path):
    texts = ["ONE TWO THREE", "FOUR ONE OH NINE", "größer"]
    for kind, size in {"unigram": 20, "bpe": 21, "char": 0}.items():
        tokenizer = Tokenizer.train(
            texts, kind=kind, vocabulary_size=size, path=tmp_path / "tokenizer.model"
        )
        for given in (tokenizer, tokenizer.with_pieces(["[noise]"])):
            model = model_without_blank(given)
            alone = sentencepiece.SentencePieceProcessor(model_proto=model)
            for text in [*texts, "ONE [noise] TEN"]:
                assert [label - 1 for label in given.encode(text)] == alone.encode(text)
            assert alone.get_piece_size() == given.vocabulary_size - 1 and alone.unk_id() == 0


def test_models_that_a_format_cannot_hold_are_refused_by_field():
    config = read_source(MODELS / "tdt").config
    require_expressible(config, "transformers")
    require_expressible(config, "nemo")
    for section, change, rule in [
        ("features", {"layout": "kaldi"}, "features.layout = 'kaldi': --format nemo needs 'nemo'"),
        ("encoder", {"norm_epsilon": 1e-6}, "encoder.norm_epsilon = 1e-06"),
        ("encoder", {"attention": "rotary"}, "encoder.attention = 'rotary'"),
        ("predictor", {"kind": "stateless", "layers": 1}, "predictor.kind = 'stateless'"),
        ("predictor", {"embedding_width": 8}, "predictor.embedding_width = 8"),
    ]:
        changed = replace(config, **{section: replace(getattr(config, section), **change)})
        with pytest.raises(ValueError, match=rule.replace("(", r"\(")):
            require_expressible(changed, "nemo")
    with pytest.raises(ValueError, match="features.layout"):
        require_expressible(Config(), "transformers")
    wide = replace(config, joint=replace(config.joint, width=16))
    require_expressible(wide, "nemo")
    with pytest.raises(ValueError, match="joint.width = 16: --format transformers needs 20"):
        require_expressible(wide, "transformers")
