"""`asr-jax import` writes what --format params writes, and refuses what it cannot import."""

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asr_jax.commands import export, import_model, train
from asr_jax.config_file import load_config
from asr_jax.errors import user_message
from asr_jax.experiment.fine_tuning import read_source
from asr_jax.export.origin import Origin
from asr_jax.export.params import leaves_by_path
from asr_jax.inference.recognizer import open_run
from asr_jax.models.composition import split_model
from asr_jax.pretrained.read_source import read_source as pretrained
from asr_jax.text import Tokenizer
from tests.pretrained.nemo_files import contents, write_archive
from tests.pretrained.references import MODELS

CARD = """---
license: cc-by-4.0
---
# A tiny model

Developed by Some Publisher.

## License

Use of this model is governed by CC BY 4.0.

## Other
Nothing.
"""


def run(source, out) -> str:
    """Import a source, and return the message of an error, or "" if there is none."""
    try:
        assert import_model.run([str(source), str(out)]) == 0
        return ""
    except ValueError as error:
        message = user_message(error)
        assert message is not None and "\n" not in message, error
        return message


def changed(config: dict, name: str, value: object) -> dict:
    """Return a config with the field at a dotted name changed."""
    config = json.loads(json.dumps(config))
    *parts, last = name.split(".")
    section = config
    for part in parts:
        section = section[part]
    section[last] = value
    return config


def test_out_is_what_export_writes(tmp_path, capsys):
    assert run(MODELS / "tdt.nemo", tmp_path / "out") == ""
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.model", "README.md"}
    config, tokenizer = load_config(out / "config.json"), Tokenizer.load(out / "tokenizer.model")
    _, abstract = split_model(config, tokenizer.vocabulary_size)
    shapes = {name: leaf.shape for name, leaf in leaves_by_path(abstract).items()}
    tensors = load_file(out / "model.safetensors")
    assert {name: tensor.shape for name, tensor in tensors.items()} == shapes
    assert tokenizer.pieces[:4] == ["<blk>", "<unk>", "<|nospeech|>", "<pad>"]
    number = sum(tensor.size for tensor in tensors.values())
    assert f"{number}" in printed and f"({number})" in (out / "README.md").read_text()
    decoding = config.decoding
    assert (decoding.max_symbols_per_frame, decoding.window_seconds) == (10, 0.0)
    assert (config.objective.sigma, config.objective.durations) == (0.02, (0, 1, 2, 3, 4))
    assert (config.features.layout, config.features.mel_bins) == ("nemo", 128)
    assert (config.encoder.bias, config.predictor.layers) == (False, 2)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    assert run(MODELS / "tdt.nemo", out) == (
        f"{out}: already exists and is not empty; choose another folder"
    )
    assert [path.name for path in out.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "name, value, supported",
    [
        ("target", "nemo.models.EncDecMultiTaskModel", "EncDecRNNTBPEModel"),
        ("target", "nemo.models.EncDecRNNTBPEModelWithPrompt", "EncDecRNNTBPEModel"),
        ("encoder._target_", "nemo.modules.SqueezeformerEncoder", "ConformerEncoder"),
        ("encoder.subsampling", "striding", "'dw_striding'"),
        ("encoder.subsampling_factor", 4, "8"),
        ("encoder.self_attention_model", "abs_pos", "'rel_pos'"),
        ("encoder.conv_norm_type", "layer_norm", "'batch_norm'"),
        ("encoder.conv_context_size", "causal", "[4, 4]"),
        ("encoder.causal_downsampling", True, "false"),
        ("encoder.att_context_size", [5, -1], "two numbers"),
        ("encoder.att_context_size", [[70, 13], [70, 6]], "several contexts"),
        ("encoder.att_context_style", "chunked_limited_with_rc", "'regular'"),
        ("encoder.untie_biases", False, "true"),
        ("encoder.xscaling", "sometimes", "true or false"),
        ("encoder.reduction", "pooling", "null"),
        ("encoder.n_layers", 3, "2"),
        ("encoder.something_new", 3, "does not know"),
        ("preprocessor.normalize", "all_features", "'per_feature'"),
        ("preprocessor.window", "blackman", "'hann'"),
        ("preprocessor.n_fft", 1024, "512"),
        ("preprocessor.mag_power", 1.0, "2.0"),
        ("preprocessor.log_zero_guard_value", 1e-5, "5.9"),
        ("preprocessor.frame_splicing", 3, "1"),
        ("preprocessor.highfreq", 4000, "8000"),
        ("encoder.feat_in", 80, "128"),
        ("decoder._target_", "nemo.modules.StatelessTransducerDecoder", "RNNTDecoder"),
        ("decoder.normalization_mode", "layer", "null"),
        ("decoder.blank_as_pad", False, "true"),
        ("decoder.vocab_size", 62, "63 labels"),
        ("joint.jointnet.activation", "sigmoid", "'relu'"),
        ("joint.num_extra_outputs", 4, "5"),
        ("model_defaults.tdt_durations", [0, 1, 2], "5 durations"),
        ("labels", ["a", "b"], "63 labels"),
        ("tokenizer.type", "wpe", "'bpe'"),
        ("tokenizer.model_path", None, "SentencePiece"),
    ],
)
def test_fields_that_make_another_model_are_refused(tmp_path, name, value, supported):
    config, tensors, files = contents("tdt")
    path = write_archive(tmp_path / "a.nemo", changed(config, name, value), tensors, files)
    message = run(path, tmp_path / "out")
    assert message.startswith(f"{path}: ") and name.rpartition(".")[2] in message
    assert supported in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, value, supported",
    [
        ("model_type", "whisper", "parakeet_tdt"),
        ("model_type", "parakeet_rnnt", "disagrees"),
        ("vocab_size", 65, "64"),
        ("blank_token_id", 0, "63"),
        ("hidden_act", "gelu", "'relu'"),
        ("durations", [0, 1], "5 durations"),
        ("encoder_config.hidden_act", "relu", "'silu'"),
        ("encoder_config.attention_bias", True, "false"),
        ("encoder_config.subsampling_conv_stride", 3, "2"),
        ("encoder_config.num_key_value_heads", 1, "4"),
        ("encoder_config.num_mel_bins", 80, "mel bins"),
        ("encoder_config.something_new", "x", "does not know"),
    ],
)
def test_fields_of_transformers_are_refused_as_well(tmp_path, name, value, supported):
    source = shutil.copytree(MODELS / "tdt", tmp_path / "tdt")
    (source / "processor_config.json").unlink()
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(changed(config, name, value)))
    message = run(source, tmp_path / "out")
    assert message.startswith(str(source)) and supported in message
    assert name.rpartition(".")[2] in message or "bins" in message


EMBEDDING = "decoder.prediction.embed.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda x: x.pop("encoder.layers.1.norm_out.bias"),
            "norm_out.bias is missing",
        ),
        (lambda x: x.pop(EMBEDDING), "decoder.embedding.weight is missing"),
        (
            lambda x: x.update({EMBEDDING: x[EMBEDDING][:, 1:]}),
            "shape (80, 20), must be (80, 19)",
        ),
        (lambda x: x.update({EMBEDDING: x[EMBEDDING].astype("f8")}), "is float64: must be one of"),
        (
            lambda x: x.update({EMBEDDING: x[EMBEDDING].astype(ml_dtypes.float8_e4m3fn)}),
            "is float8_e4m3fn: must be one of",
        ),
        (lambda x: x.update({"encoder.more": x[EMBEDDING]}), "encoder.more is not part"),
        (lambda x: x.update({EMBEDDING: x[EMBEDDING].ravel()}), "must have 2 axes"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    config, tensors, files = contents("tdt")
    change(tensors)
    path = write_archive(tmp_path / "a.nemo", config, tensors, files)
    found = run(path, tmp_path / "out")
    assert found.startswith(f"{path}: ") and message in found


def test_a_tokenizer_that_is_missing_or_disagrees_is_refused(tmp_path):
    config, tensors, files = contents("tdt")
    (name,) = files
    path = write_archive(tmp_path / "a.nemo", config, tensors, {})
    assert "model_path" in run(path, tmp_path / "out")
    (of_ctc,) = contents("ctc")[2].values()
    write_archive(path, config, tensors, {name: of_ctc[:-20]})
    assert "not a SentencePiece model" in run(path, tmp_path / "out")

    source = shutil.copytree(MODELS / "tdt", tmp_path / "tdt")
    for file in ("tokenizer.model", "tokenizer.json"):
        (source / file).unlink()
    assert "needs tokenizer.model or tokenizer.json" in run(source, tmp_path / "out")
    short = json.loads((MODELS / "tdt" / "tokenizer.json").read_text())
    del short["model"]["vocab"]["U"]
    (source / "tokenizer.json").write_text(json.dumps(short))
    assert "62 pieces" in run(source, tmp_path / "out")


def test_sources_that_are_no_models_are_refused(tmp_path):
    assert "no such file" in run(tmp_path / "none.nemo", tmp_path / "out")
    assert "has no config.json" in run(tmp_path, tmp_path / "out")
    (tmp_path / "text.nemo").write_text("text")
    assert "not a complete .nemo archive" in run(tmp_path / "text.nemo", tmp_path / "out")
    assert "text.nemo" in run(tmp_path, tmp_path / "out")


def test_too_little_disk_or_memory_is_one_line(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "GB free" in run(MODELS / "ctc", tmp_path / "out")

    def fail(path):
        raise MemoryError

    monkeypatch.setattr(import_model, "read_source", fail)
    assert "not enough memory" in run(MODELS / "ctc", tmp_path / "out")


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_weights_of_sixteen_bits_become_float32(tmp_path, dtype):
    config, tensors, files = contents("ctc")
    rounded = {
        name: tensor.astype(np.dtype(dtype) if dtype == "float16" else ml_dtypes.bfloat16)
        for name, tensor in tensors.items()
    }
    path = write_archive(tmp_path / "a.nemo", config, rounded, files)
    source = shutil.copytree(MODELS / "ctc", tmp_path / "ctc")
    weights = load_file(source / "model.safetensors")
    save_file(
        {
            name: tensor.astype(rounded[EMBED_OF_CTC].dtype) if tensor.dtype == "f4" else tensor
            for name, tensor in weights.items()
        },
        source / "model.safetensors",
    )
    assert run(path, tmp_path / "archive") == run(source, tmp_path / "folder") == ""
    first, second = (load_file(tmp_path / x / "model.safetensors") for x in ("archive", "folder"))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    kernel = rounded[EMBED_OF_CTC][:, :, 0].astype(np.float32)
    assert np.array_equal(np.roll(first["ctc_head.kernel"].T, -1, axis=0), kernel)


EMBED_OF_CTC = "decoder.decoder_layers.0.weight"


def test_license_and_attribution_are_carried_on(tmp_path):
    source = shutil.copytree(MODELS / "ctc", tmp_path / "published")
    (source / "README.md").write_text(CARD)
    out = tmp_path / "out"
    assert run(source, out) == ""
    origin = open_run(out, "best").origin
    assert origin is not None
    assert origin[:2] == ("published", "cc-by-4.0")
    for text in ("A tiny model", "Developed by Some Publisher", "governed by CC BY 4.0"):
        assert text in origin.attribution
    assert "Nothing" not in origin.attribution
    card = (out / "README.md").read_text()
    assert all(text in card for text in origin)

    opened = open_run(out, "best")
    abstract = split_model(opened.config, opened.tokenizer.vocabulary_size)[1]
    taken = read_source(out, tmp_path / "run", opened.config, opened.tokenizer, abstract)
    assert taken is not None
    assert Origin(**taken.record.get("origin", {})) == origin
    assert any("cc-by-4.0" in note for note in taken.notes)


def test_a_license_in_the_archive_or_beside_it_is_found(tmp_path):
    config, tensors, files = contents("ctc")
    path = write_archive(tmp_path / "a.nemo", {**config, "license": "mit"}, tensors, files)
    assert run(path, tmp_path / "one") == ""
    assert open_run(tmp_path / "one", "best").origin == Origin("a.nemo", "mit", "")
    write_archive(path, config, tensors, {**files, "README.md": CARD.encode()})
    inside = pretrained(path).origin
    write_archive(path, config, tensors, files)
    (tmp_path / "README.md").write_text(CARD)
    assert pretrained(path).origin == inside
    assert inside.license == "cc-by-4.0"
    # A card beside several archives may be that of another one.
    shutil.copy(path, tmp_path / "b.nemo")
    assert pretrained(path).origin == Origin("a.nemo", "", "")


def test_an_output_layer_without_a_dropout_before_it_is_found(tmp_path):
    config, tensors, files = contents("rnnt")
    moved = {name.replace("joint_net.2", "joint_net.1"): x for name, x in tensors.items()}
    assert moved.keys() != tensors.keys()
    path = write_archive(tmp_path / "a.nemo", config, moved, files)
    kernel = pretrained(path).parameters["joint.out.kernel"]()
    assert np.array_equal(np.roll(kernel.T, -1, axis=0), tensors["joint.joint_net.2.weight"])


@pytest.mark.slow
@pytest.mark.usefixtures("sizes_may_be_symbols")
def test_every_export_of_a_fine_tuned_model_states_the_license(tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    monkeypatch.chdir(Path(__file__).parents[2])
    source = shutil.copytree(MODELS / "tdt", tmp_path / "published")
    (source / "README.md").write_text(CARD)
    out, trained = tmp_path / "out", tmp_path / "run"
    assert run(source, out) == ""
    data = "samples/an4/test"
    options = ["--run", trained, "--init-from", out, "--data.train", data, "--data.dev", data]
    options += ["--tokenizer.model", out / "tokenizer.model", "--train.steps", 2]
    options += [
        "--data.batch-seconds",
        20,
        "--augment.speeds",
        1.0,
        "--train.evaluate-every-steps",
        2,
    ]
    assert train.run([str(out / "config.json"), *map(str, options)]) == 0
    labels = open_run(trained, "last").tokenizer.pieces
    assert labels == open_run(out, "best").tokenizer.pieces
    forms = [(trained, "params"), (trained, "stablehlo"), (out, "params")]
    # An export of an export states it, too.
    for number, (model, form) in enumerate([*forms, (tmp_path / "export0", "params")]):
        written = tmp_path / f"export{number}"
        arguments = [model, written, "--format", form, "--data", data, "--recordings", 1]
        assert export.run([*map(str, arguments)]) == 0
        card = (written / "README.md").read_text()
        assert "cc-by-4.0" in card and "Developed by Some Publisher" in card


@pytest.mark.slow
@pytest.mark.parametrize("form", ["transformers", "nemo"])
def test_an_imported_model_is_written_back(command, tmp_path, form):
    assert run(MODELS / "tdt", tmp_path / "in") == ""
    options = ("--format", form, "--data", "samples/an4/test", "--recordings", 3)
    outcome = command("export", tmp_path / "in", tmp_path / "out", *options)
    assert outcome.status == 0, outcome.err
    assert "3 of 3 transcripts are the run's" in outcome.out
    source = tmp_path / "out" / ("model.nemo" if form == "nemo" else "")
    assert command("import", source, tmp_path / "again").status == 0
    first, second = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("in", "again")
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)
