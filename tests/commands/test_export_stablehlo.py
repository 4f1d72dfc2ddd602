"""`asr-jax export --format stablehlo`: the programs transcribe as the run does, without asr_jax."""

import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("flatbuffers", reason="of the extra `export`")

from asr_jax.commands.export import write_stablehlo
from asr_jax.export import stablehlo

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sizes_may_be_symbols")]


@pytest.fixture(scope="module")
def exported(export_trained, sizes_may_be_symbols) -> Path:
    return export_trained("--format=stablehlo")


@pytest.fixture
def waves(trained, tmp_path) -> list[Path]:
    flacs = sorted(trained.data.parent.glob("*.flac"))
    waves = [tmp_path / f"{path.stem}.wav" for path in flacs]
    for flac, wave in zip(flacs, waves):
        samples, rate_hz = soundfile.read(flac)
        soundfile.write(wave, samples, rate_hz, subtype="PCM_16")
    return waves


def run_without_asr_jax(script: str, *arguments: object) -> list[str]:
    preamble = "import sys; sys.modules.update(asr_jax=None, flax=None)\n"
    command = [sys.executable, "-c", preamble + script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def texts(lines: list[str]) -> list[str]:
    return [line.partition("\t")[2] for line in lines]


def test_the_script_of_the_docs_runs_without_asr_jax(
    trained, exported, command, script_of_docs, waves
):
    actual = texts(run_without_asr_jax(script_of_docs("recognize.stablehlo"), exported, *waves))
    expected = texts(command("transcribe", trained.run, *waves).out.splitlines())
    assert actual == expected and any(expected)


def test_the_script_of_the_docs_prints_text_chunk_by_chunk(
    of_streams, command, script_of_docs, waves, tmp_path
):
    out = tmp_path / "out"
    outcome = command("export", of_streams, out, "--format=stablehlo", "--chunk-ms=160")
    assert outcome.status == 0, outcome.err
    assert "chunk by chunk: 6 of 6 transcripts are the run's" in outcome.out
    lines = run_without_asr_jax(script_of_docs("recognize_chunk"), out, *waves)
    transcribe = ("transcribe", of_streams, "--chunk-ms=160")
    transcripts = texts(command(*transcribe, *waves).out.splitlines())
    for wave, expected in zip(waves, transcripts):
        of_wave = texts([line for line in lines if line.startswith(f"{wave}\t")])
        # Every chunk prints a line with the text so far.
        assert len(of_wave) == -(-soundfile.info(wave).frames // 2560)
        assert of_wave[-1].split() == expected.split()
        assert all(later.startswith(before) for before, later in zip(of_wave, of_wave[1:]))
    assert any(transcripts)


def test_a_difference_is_an_error(of_streams, error, tmp_path, monkeypatch):
    chunks = write_stablehlo.chunks

    def quieter(*arguments):
        yield from ((samples * 0.5, lengths) for samples, lengths in chunks(*arguments))

    monkeypatch.setattr(write_stablehlo, "chunks", quieter)
    export = ("export", of_streams, tmp_path / "out", "--format=stablehlo", "--chunk-ms=160")
    message = error(*export)
    assert "float32 chunk by chunk: " in message and "differ from the run's" in message
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(trained, error, exported, tmp_path, monkeypatch):
    export = ("export", trained.run, tmp_path / "out", "--format=stablehlo")
    for options in ("--dtype=bfloat16", "--quantize=int8"):
        assert "its programs compute with float32 parameters" in error(*export, options)
    read = stablehlo.load

    def another_program(folder):
        programs, params = read(exported)
        return programs | {"join": lambda *sides: [x + 1 for x in programs["join"](*sides)]}, params

    monkeypatch.setattr(stablehlo, "write", lambda *_: None)
    monkeypatch.setattr(stablehlo, "load", another_program)
    assert "outputs of join.stablehlo differ from the model's by" in error(*export)
    assert not (tmp_path / "out").exists()
