"""The examples run: the scripts as they are, the notebook on a CPU with a few steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

pytestmark = pytest.mark.slow


def test_the_loss_alone_falls():
    script = [sys.executable, str(EXAMPLES / "loss_alone.py")]
    output = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    losses = [float(loss) for loss in re.findall(r": ([0-9.]+) nats", output)]
    assert len(losses) == 6 and losses[-1] < 0.01 * losses[0]


def test_the_notebook_trains_a_model_that_the_script_transcribes_with(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="of the extra `release`")
    nbclient = pytest.importorskip("nbclient", reason="of the extra `release`")
    monkeypatch.delenv("XLA_FLAGS")  # The tests' eight devices do not divide the batches.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(EXAMPLES / "train_on_a_free_tpu.ipynb", as_version=4)
    parameters = notebook.cells[1]
    for name, value in (("RUN", str(tmp_path / "run")), ("STEPS", 4)):
        parameters.source, count = re.subn(
            rf"(?m)^{name} = .*", lambda _: f"{name} = {value!r}", parameters.source
        )
        assert count == 1

    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(EXAMPLES)}}
    )
    client.execute()

    assert (tmp_path / "run/exported/model.safetensors").is_file()
    shown = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    )
    assert "% of" in shown and "Traceback" not in shown, shown

    recording = next(iter(sorted((EXAMPLES.parent / "samples/an4/test").rglob("*.ogg"))))
    script = [sys.executable, EXAMPLES / "transcribe.py", tmp_path / "run", recording]
    output = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    assert output.startswith(f"{recording}: ")
