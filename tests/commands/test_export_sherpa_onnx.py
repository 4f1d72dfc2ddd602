"""`asr-jax export --format sherpa-onnx`: the released runtime transcribes as the run does."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="of the extra `export`")
pytest.importorskip("onnxruntime", reason="of the extra `export`")
pytest.importorskip("sherpa_onnx", reason="of the extra `export`")

import sherpa_onnx as runtime

from asr_jax.audio.samples import read_audio
from asr_jax.commands.export import write_sherpa_onnx
from asr_jax.config import (
    Config,
    DecodingConfig,
    EncoderConfig,
    FeaturesConfig,
    ObjectiveConfig,
    PredictorConfig,
)
from asr_jax.export import format_version, nemo_layout, onnx_check, onnx_layers, sherpa_onnx

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def exported(export_trained) -> Path:
    """Export the run, which checks the transcript of each recording in sherpa-onnx."""
    return export_trained("--format=sherpa-onnx", "--quantize=int8")


def transcripts(folder: Path, trained, *, suffix: str = "", **options) -> list[str]:
    """Transcribe all recordings in one batch."""
    parts = {part: str(folder / f"{part}{suffix}.onnx") for part in sherpa_onnx.PARTS}
    recognizer = runtime.OfflineRecognizer.from_transducer(
        **parts, tokens=str(folder / "tokens.txt"), **options
    )
    streams = []
    for path in sorted(trained.data.parent.glob("*.flac")):
        streams.append(recognizer.create_stream())
        streams[-1].accept_waveform(16_000, read_audio(path, sample_rate_hz=16_000))
    recognizer.decode_streams(streams)
    return [stream.result.text.strip() for stream in streams]


def test_the_folder_has_the_files_that_the_runtime_reads(exported):
    onnx = {f"{part}{suffix}.onnx" for part in sherpa_onnx.PARTS for suffix in ("", ".int8")}
    names = {path.name for path in exported.iterdir()}
    assert names == onnx | {"tokens.txt", "bpe.vocab", "README.md"}
    tokens = (exported / "tokens.txt").read_text().splitlines()
    assert tokens[:2] == ["<blk> 0", "<unk> 1"] and "ß" in "".join(tokens)
    assert f'encoder="{exported.name}/encoder.onnx"' in (exported / "README.md").read_text()


def test_a_batch_gives_the_transcripts_of_single_recordings(trained, exported):
    paths = sorted(trained.data.parent.glob("*.flac"))
    recordings = [read_audio(path, sample_rate_hz=16_000) for path in paths]
    expected = write_sherpa_onnx.transcripts(exported, "", recordings, Config())
    assert any(expected)
    assert transcripts(exported, trained) == expected


def test_the_script_of_the_docs_runs(trained, exported, script_of_docs):
    script = script_of_docs("sherpa_onnx.OfflineRecognizer")
    paths = sorted(trained.data.parent.glob("*.flac"))
    command = [sys.executable, "-c", script, exported, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    texts = [line.partition("\t")[2] for line in done.stdout.splitlines()]
    assert texts == transcripts(exported, trained)


def test_the_script_of_the_docs_for_streams_runs(
    trained, of_streams, command, script_of_docs, tmp_path
):
    out = tmp_path / "out"
    outcome = command("export", of_streams, out, "--format=sherpa-onnx", "--chunk-ms=160")
    assert outcome.status == 0, outcome.err
    paths = sorted(trained.data.parent.glob("*.flac"))
    script = script_of_docs("sherpa_onnx.OnlineRecognizer")
    done = subprocess.run(
        [sys.executable, "-c", script, out, *paths], capture_output=True, text=True, check=True
    )
    # The script adds two seconds of silence to each recording.
    silence = np.zeros(32_000, np.float32)
    recordings = [np.append(read_audio(path, sample_rate_hz=16_000), silence) for path in paths]
    config = Config(
        features=FeaturesConfig(normalization="none"),
        encoder=EncoderConfig(chunk_ms=(160.0,)),
        decoding=DecodingConfig(chunk_ms=160.0),
    )
    printed = [line.split("\t")[1] for line in done.stdout.splitlines()]
    expected = write_sherpa_onnx.transcripts(out, "", recordings, config)
    # `transcripts` adds two hops, which may complete a last chunk of four frames.
    for text, longer in zip(printed, expected, strict=True):
        assert longer.startswith(text) and len(longer) - len(text) <= 4
    assert len(set(printed)) > 1


def test_hotwords_bias_a_beam_search(trained, exported, tmp_path):
    (tmp_path / "hotwords").write_text("zwei\n")
    # One path for every label: a word's bonus counts only while its labels are among the paths.
    options = dict(decoding_method="modified_beam_search", max_active_paths=22)
    hot = dict(
        hotwords_score=100.0,
        hotwords_file=str(tmp_path / "hotwords"),
        modeling_unit="bpe",
        bpe_vocab=str(exported / "bpe.vocab"),
    )
    for suffix in ("", ".int8"):
        count = lambda texts: sum(text.count("zwei") for text in texts)
        plain = transcripts(exported, trained, suffix=suffix, **options)
        biased = transcripts(exported, trained, suffix=suffix, **options, **hot)
        assert count(biased) > count(plain) == 0


def test_a_difference_is_an_error_and_leaves_nothing(trained, error, tmp_path, monkeypatch):
    swish = onnx_layers.silu
    monkeypatch.setattr(onnx_layers, "silu", lambda g, x: g("Mul", swish(g, x), 1.01))
    message = error("export", trained.run, tmp_path / "out", "--format=sherpa-onnx")
    assert "outputs of onnxruntime differ from the model's by" in message
    assert not (tmp_path / "out").exists()


def test_files_of_another_version_are_rejected(exported, monkeypatch):
    monkeypatch.setitem(format_version.ABOUT, "version", "2")
    with pytest.raises(format_version.ArtifactError) as error_info:
        onnx_check.open_runtime(exported, Config(), suffix=".int8", vocabulary=22)
    assert f"{exported}/encoder.int8.onnx: written by asr_jax, version 1; " in str(error_info.value)


def test_models_that_sherpa_onnx_cannot_run_are_rejected(trained, error, tmp_path):
    export = ("export", trained.run, tmp_path / "out", "--format=sherpa-onnx")
    assert "--dtype bfloat16: sherpa-onnx computes in" in error(*export, "--dtype=bfloat16")
    tdt = ObjectiveConfig(kind="tdt", durations=(0, 1, 3))
    for config, message in [
        (Config(predictor=PredictorConfig(kind="lstm")), "predictor.kind = 'lstm': only NeMo's"),
        (Config(objective=ObjectiveConfig(kind="tdt")), "features.low_hz = 20.0 must be 0.0; "),
        (Config(objective=tdt), "objective.durations = (0, 1, 3): must be 0, 1, 2"),
        (Config(objective=ObjectiveConfig(kind="ctc")), "objective.kind = 'ctc'"),
        (
            Config(objective=ObjectiveConfig(ctc_weight=0.3), decoding=DecodingConfig(head="ctc")),
            "decoding.head = 'ctc'",
        ),
        (Config(encoder=EncoderConfig(subsampling_factor=8)), "encoder.subsampling_factor = 8"),
        (
            Config(features=FeaturesConfig(mel_bins=64, low_hz=0.0)),
            "features.mel_bins = 64 must be 80; features.low_hz = 0.0 must be 20.0",
        ),
        (
            Config(
                features=FeaturesConfig(normalization="none"),
                encoder=EncoderConfig(kind="transformer", chunk_ms=(80.0,)),
                decoding=DecodingConfig(chunk_ms=80.0),
            ),
            "encoder.kind = 'transformer': must be 'conformer' for streams",
        ),
        (
            Config(
                features=dataclasses.replace(nemo_layout.FEATURES, normalization="none"),
                encoder=EncoderConfig(chunk_ms=(80.0,)),
                decoding=DecodingConfig(chunk_ms=80.0),
            ),
            "decoding.chunk_ms = 80: streams are exported in icefall's layout only",
        ),
    ]:
        with pytest.raises(sherpa_onnx.LayoutError) as error_info:
            sherpa_onnx.layout(config)
        assert message in str(error_info.value) and "\n" not in str(error_info.value)
    assert sherpa_onnx.layout(Config()) == "icefall"
    plain = dataclasses.replace(Config(), features=FeaturesConfig(normalization="none"))
    assert sherpa_onnx.layout(plain) == "icefall"
