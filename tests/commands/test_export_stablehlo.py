"""`asr-jax export --format stablehlo`: programs that recognise as the run does, without asr_jax."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("flatbuffers", reason="of the extra `export`")

import jaxtyping

from asr_jax.export import stablehlo

DOCS = Path(__file__).resolve().parents[2] / "docs/export.md"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def sizes_may_be_symbols():
    """Annotations say int, which a size that is left open is not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def exported(trained, command, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("export") / "model"
    outcome = command("export", trained.run, out, "--format=stablehlo")
    assert outcome.status == 0, outcome.err
    assert "float32: 6 of 6 transcripts are the run's" in outcome.out
    return out


def test_the_script_of_the_docs_runs_without_asr_jax(trained, exported, command, tmp_path):
    script = next(
        code
        for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
        if "recognize.stablehlo" in code
    )
    without = "import sys; sys.modules.update(asr_jax=None, flax=None)\n"
    flacs = sorted(trained.data.parent.glob("*.flac"))
    waves = [tmp_path / f"{path.stem}.wav" for path in flacs]
    for flac, wave in zip(flacs, waves):
        samples, rate_hz = soundfile.read(flac)
        soundfile.write(wave, samples, rate_hz, subtype="PCM_16")
    arguments = [sys.executable, "-c", without + script, exported, *waves]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    texts = lambda lines: [line.partition("\t")[2] for line in lines.splitlines()]
    expected = texts(command("transcribe", trained.run, *waves).out)
    assert texts(done.stdout) == expected and any(expected)


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
    assert "what join.stablehlo computes differs from the model by" in error(*export)
    assert not (tmp_path / "out").exists()
