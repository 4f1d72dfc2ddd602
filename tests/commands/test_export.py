"""`asr-jax export` and `asr_jax.load`: exported models transcribe as their run does."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import asr_jax
from asr_jax.audio.samples import read_audio
from asr_jax.commands.export import check
from asr_jax.config import Config, ObjectiveConfig, PredictorConfig
from asr_jax.data.manifest import read_transcribed
from asr_jax.export import model_card
from asr_jax.inference.recognizer import open_run, windows_of
from asr_jax.types import Utterance


def recordings(trained) -> list[Path]:
    return sorted(trained.data.parent.glob("*.flac"))


@pytest.fixture(scope="module")
def exported(export_trained) -> Path:
    pytest.importorskip("safetensors")
    return export_trained("--format=params")


def test_the_folder_holds_a_model_and_nothing_else(exported):
    names = {path.name for path in exported.iterdir()}
    assert names == {"config.json", "tokenizer.model", "model.safetensors", "README.md"}
    assert [path.name for path in exported.parent.iterdir()] == ["model"]


def test_transcribe_and_evaluate_accept_it_as_a_run(trained, exported, command, tmp_path):
    transcribe = lambda run: command("transcribe", run, *recordings(trained))
    assert transcribe(exported) == transcribe(trained.run)
    assert len(set(transcribe(exported).out.splitlines())) > 1
    scored = [
        command("evaluate", run, "--data", trained.data, "--output", tmp_path / name)
        for name, run in [("run", trained.run), ("model", exported)]
    ]
    assert [outcome.status for outcome in scored] == [0, 0]
    hypotheses = [(tmp_path / name / "hypotheses.jsonl").read_text() for name in ("run", "model")]
    assert hypotheses[0] == hypotheses[1]


@pytest.mark.parametrize("options", [["--quantize=int8"], ["--dtype=bfloat16"]])
def test_smaller_forms(trained, exported, command, tmp_path, options):
    outcome = command("export", trained.run, tmp_path / "m", "--format=params", *options)
    assert outcome.status == 0, outcome.err
    size = lambda folder: (folder / "model.safetensors").stat().st_size
    assert size(tmp_path / "m") < 0.75 * size(exported)
    assert command("transcribe", tmp_path / "m", recordings(trained)[0]).status == 0


@pytest.mark.slow
def test_folded_is_the_same_model_without_shared_matrices(trained, command, tmp_path):
    pytest.importorskip("safetensors")
    sharing = ["--encoder.layers=4", "--encoder.shared-layers=4", "--encoder.residual-rank=1"]
    rest = [*trained.arguments[4:], *sharing, "--train.steps=2"]
    assert command("train", trained.config, "--run", tmp_path / "run", *rest).status == 0
    for name, options in [("apart", []), ("folded", ["--fold"])]:
        outcome = command("export", tmp_path / "run", tmp_path / name, "--format=params", *options)
        assert "6 of 6 transcripts are the run's" in outcome.out, outcome.err
    read = lambda name: json.loads((tmp_path / name / "config.json").read_text())
    assert [read(name)["encoder.shared_layers"] for name in ("apart", "folded")] == [4, 1]
    size = lambda name: (tmp_path / name / "model.safetensors").stat().st_size
    assert size("folded") > 1.5 * size("apart")
    assert "folded" in (tmp_path / "folded/README.md").read_text()


def test_load_gives_the_texts_of_transcribe(trained, exported, command):
    paths = recordings(trained)
    lines = command("transcribe", trained.run, *paths).out.splitlines()
    expected = [line.partition("\t")[2] for line in lines]
    for directory in (trained.run, str(exported)):
        model = asr_jax.load(directory)
        assert model.config.encoder.width == 16 and model.checkpoint == "best (2)"
        timed = model.transcribe(paths, timestamps=True)
        assert [transcript.text for transcript in timed] == expected
        assert [" ".join(word.text for word in t.words) for t in timed] == expected
        assert not any(transcript.words for transcript in model.transcribe(paths))
        samples = [read_audio(path, sample_rate_hz=16_000) for path in paths]
        assert [transcript.text for transcript in model.transcribe(samples)] == expected
        assert [t.text for t in model.transcribe(str(paths[2]))] == expected[2:3]
        assert model.transcribe([]) == []


@pytest.mark.slow
def test_load_takes_the_search_options_of_transcribe(trained, command, tmp_path):
    paths, hotwords = recordings(trained), tmp_path / "hotwords.txt"
    hotwords.write_text("zwei :9\n")
    lines = command(
        *("transcribe", trained.run, *paths, "--decoder=beam", "--beam=2"),
        *("--hotwords", hotwords, "--internal-lm-weight=0.1"),
    ).out.splitlines()
    options = dict(beam=2, hotwords=str(hotwords), internal_lm_weight=0.1)
    transcripts = asr_jax.load(trained.run, **options).transcribe(paths)
    assert [transcript.text for transcript in transcripts] == [
        line.partition("\t")[2] for line in lines
    ]
    assert transcripts != asr_jax.load(trained.run, beam=2).transcribe(paths)
    for phrases in (["zwei"], [("zwei", 9)], {"zwei": 9}):
        options |= dict(hotwords=phrases, hotword_boost=9.0)
        assert asr_jax.load(trained.run, **options).transcribe(paths) == transcripts
    decoding = asr_jax.load(trained.run, window_seconds=0.0, beam=0).config.decoding
    assert (decoding.window_seconds, decoding.beam) == (0, 0)
    with pytest.raises(ValueError, match="^--hotwords: needs a beam search"):
        asr_jax.load(trained.run, hotwords=hotwords)
    with pytest.raises(TypeError, match="hotword_bost"):
        asr_jax.load(trained.run, beam=2, hotword_bost=1.0)


def test_load_accepts_steps_and_rejects_phrases_in_one_line(trained):
    assert asr_jax.load(trained.run, checkpoint=3).checkpoint == "3 (3)"
    for hotwords, message in [
        (["zwei", "zwei"], r"hotwords\[1\] = 'zwei': is listed twice"),
        ([" "], r"hotwords\[0\] = ' ': must be a phrase, or a phrase and its boost"),
        ([("zwei", 0.0)], r"hotwords\[0\] = \('zwei', 0.0\): its boost must be above 0, up to 100"),
        ({"zwei": 0.0}, r"hotwords\[0\] = \('zwei', 0.0\): its boost must be above 0, up to 100"),
        (["gro\u0308\u00dfer", "gr\u00f6\u00dfer"], r"hotwords\[1\] = 'größer': is listed twice"),
        ([], "hotwords: must hold a phrase"),
        (["QQ"], "hotword 'QQ': the model's tokenizer lacks 'Q'"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}"):
            asr_jax.load(trained.run, beam=2, hotwords=hotwords)
    with pytest.raises(ValueError, match="^--hotwords: needs a beam search"):
        asr_jax.load(trained.run, hotwords=["zwei"])
    model = asr_jax.load(trained.run)
    samples = read_audio(recordings(trained)[1], sample_rate_hz=16_000)
    expected = model.transcribe(samples)
    assert model.transcribe({"array": samples, "sampling_rate": 16_000}) == expected
    assert model.transcribe([samples.tolist(), recordings(trained)[1].read_bytes()]) == 2 * expected
    (one,) = model.transcribe(samples[:1])
    assert one.text.strip() == one.text
    for rate_hz in (0, -16_000):
        with pytest.raises(ValueError, match=f"^sample_rate_hz = {rate_hz}: must be a whole num"):
            model.transcribe(samples, sample_rate_hz=rate_hz)


def test_load_resamples(trained, tmp_path):
    model = asr_jax.load(trained.run)
    samples = np.sin(np.arange(8000, dtype=np.float32) / 20)
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    (written,) = model.transcribe(tmp_path / "a.wav")
    assert model.transcribe(samples, sample_rate_hz=8000) == [written]


def test_load_names_what_it_cannot_read(trained, tmp_path):
    model = asr_jax.load(trained.run)
    with pytest.raises(ValueError, match="nothing.flac: no such file"):
        model.transcribe("nothing.flac")
    with pytest.raises(ValueError, match=r"audio: int64 samples of shape \(5,\): must be"):
        model.transcribe(np.zeros(5, np.int64))
    with pytest.raises(ValueError, match="not a run directory"):
        asr_jax.load(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        asr_jax.lode  # noqa: B018


def test_errors_are_one_line(trained, error, tmp_path):
    pytest.importorskip("safetensors")
    export = lambda *options: error("export", *options, "--format", "params")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert "already exists and is not empty" in export(trained.run, tmp_path / "full")
    assert "already exists and is not empty" in export(trained.run, tmp_path / "full/file")
    out = tmp_path / "out"
    assert export(trained.run, ".") == ".: must name a folder to create"
    assert "not a run directory" in export(tmp_path / "none", out)
    assert "must be positive" in export(trained.run, out, "--recordings", 0)
    assert "is not one of" in error("export", trained.run, out, "--format", "paper")
    assert "--format is required" in error("export", trained.run, out)
    assert "--fold: encoder.shared_layers is 1" in export(trained.run, out, "--fold")
    assert "--checkpoint 17: must be" in export(trained.run, out, "--checkpoint", 17)
    assert not out.exists()


@pytest.mark.parametrize("most, chosen", [(3, [0, 2, 4]), (4, [0, 1, 3, 4]), (9, range(6))])
def test_recordings_of_the_check_are_evenly_spread(trained, monkeypatch, most, chosen):
    silent = lambda _, utterances: SimpleNamespace(texts=[""] * len(utterances))
    monkeypatch.setattr(check, "recognize_utterances", silent)
    reference = check.recognize_reference(open_run(trained.run, "best"), str(trained.data), most)
    everything, _ = read_transcribed(trained.data, "")
    assert reference.utterances == [everything[n] for n in chosen]


def test_programs_are_checked_without_windows(trained):
    from asr_jax.commands.export import write_stablehlo

    run = open_run(trained.run, "best")
    long = Utterance("long", Path("long.wav"), "", 3 * run.config.decoding.window_seconds)
    prepared = write_stablehlo.prepared(run, dtype="float32", int8=False)
    assert len(windows_of(long, run.config)) > 1
    assert windows_of(long, prepared.config) == [long]


def test_an_export_has_one_checkpoint(exported, error, trained):
    message = error("transcribe", exported, recordings(trained)[0], "--checkpoint", 3)
    assert message.startswith("--checkpoint 3: ")
    assert message.endswith("was exported with the parameters of best (2) and has no others")


def test_unreadable_folders_are_explained(exported, error, trained, tmp_path):
    """Even if the config of another version has unknown fields."""
    from safetensors.numpy import save_file

    transcribe = lambda: error("transcribe", tmp_path / "other", recordings(trained)[0])
    shutil.copytree(exported, tmp_path / "other")
    (tmp_path / "other/config.json").write_text('{"encoder.of_tomorrow": 1}')
    about = {"format": "asr_jax", "version": "2", "checkpoint": "best (2)"}
    save_file({"a": np.zeros(1)}, tmp_path / "other/model.safetensors", metadata=about)
    assert transcribe() == (
        f"{tmp_path}/other/model.safetensors: written by asr_jax, version 2; this is asr_jax, "
        "version 1 of the format: export the run again"
    )
    for name, form in [("recognize.stablehlo", "stablehlo"), ("encoder.onnx", "sherpa-onnx")]:
        (tmp_path / "other" / name).touch()
        assert (
            f"/other: written by export --format {form}, which runs without asr_jax" in transcribe()
        )
        (tmp_path / "other" / name).unlink()


def test_a_missing_package_is_named(trained, error, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = error("export", trained.run, tmp_path / "out", "--format", "params")
    assert message == "--format needs the package safetensors: pip install safetensors"
    message = error("export", trained.run, tmp_path / "out", "--format", "sherpa-onnx")
    assert message == "--format needs the package onnx: pip install 'asr_jax[export]'"


def test_a_difference_is_an_error_and_leaves_nothing(trained, error, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    from asr_jax.commands.export import write_params

    save = write_params.save_params

    def with_another_bias(path, tree, **options):
        bias = tree["joint"]["out"]["bias"]
        save(
            path,
            {
                **tree,
                "joint": {
                    **tree["joint"],
                    "out": {
                        **tree["joint"]["out"],
                        "bias": bias + np.arange(len(bias), dtype=np.float32),
                    },
                },
            },
            **options,
        )

    monkeypatch.setattr(write_params, "save_params", with_another_bias)
    message = error("export", trained.run, tmp_path / "out", "--format", "params")
    assert "transcripts differ from the run's" in message
    assert not (tmp_path / "out").exists()


def test_the_card_has_the_evaluation_and_open_licenses(trained, exported):
    text = (exported / "README.md").read_text()
    wer = json.loads(next(trained.run.glob("evaluation/*/wer.json")).read_text())["wer"]
    assert f"| {trained.data} | {wer:.2f} |" in text
    assert text.count("TO BE FILLED IN") == 2
    assert "| predictor | stateless, 2 labels, 16 wide |" in text
    tdt = Config(
        predictor=PredictorConfig(kind="lstm", layers=2, width=640),
        objective=ObjectiveConfig(kind="tdt"),
    )
    assert model_card._predictor(tdt) == {"predictor": "lstm, 2 layers 640 wide"}
    assert model_card._predictor(Config(objective=ObjectiveConfig(kind="ctc"))) == {}
    assert "not evaluated" in model_card._evaluations([])


@pytest.mark.parametrize(
    "references, texts, rates",
    [
        (["\u4e00 \u4e8c", "\u4e09"], ["\u4e00\u4e8c", "\u56db"], ("CER", 0.0, 100 / 3)),
        (["one two", "three"], ["one", "three"], ("WER", 0.0, 100 / 3)),
    ],
)
def test_the_check_counts_what_the_evaluation_of_the_script_counts(references, texts, rates):
    utterances = [Utterance("u", Path("u"), text, 1.0) for text in references]
    compared = check.ReferenceTranscripts("data", utterances, references).compare(texts)
    assert compared.rates[0] == rates[0] and compared.rates[1:] == pytest.approx(rates[1:])


def loaded_by(code: str) -> set[str]:
    """Return the names of the packages that a new interpreter has loaded after running `code`."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {module.partition(".")[0] for module in modules}


PREPARATION_AND_COMMANDS = {"tyro", "grain", "tensorflow_datasets"}


def test_importing_the_losses_loads_only_jax():
    """Neither importing the package nor asr_jax.losses loads what only training needs."""
    training = {"flax", "optax", "orbax", "sentencepiece", "safetensors"}
    loaded = loaded_by("import asr_jax, asr_jax.losses")
    assert "jax" in loaded and not (training | PREPARATION_AND_COMMANDS) & loaded


def test_loading_a_model_loads_no_command_line_and_no_data_pipeline(exported):
    loaded = loaded_by(f"import asr_jax; asr_jax.load({str(exported)!r})")
    assert {"flax", "sentencepiece"} <= loaded and not PREPARATION_AND_COMMANDS & loaded
