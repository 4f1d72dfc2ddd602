"""The package as its users get it: a wheel in an empty environment, far from the checkout."""

import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of the source distribution, and of the wheel that was built from it."""
    pytest.importorskip("build", reason="of the extra `release`")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    return folder


def test_the_source_distribution_holds_what_the_wheel_is_built_from(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"asr_jax/py.typed", "configs/quickstart.py", "requirements.txt", "LICENSE"} <= names
    assert not any(name.startswith(("tests", "samples", "runs")) for name in names)


def test_an_installed_wheel_trains_a_shipped_config_on_a_folder_elsewhere(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env/bin/python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
    data = tmp_path / "speech"
    data.symlink_to(ROOT / "samples/an4/dev")
    work = tmp_path / "work"
    work.mkdir()
    command = [tmp_path / "env/bin/asr-jax", "train", "quickstart", "--train.steps", "1"]
    command += [
        f"--data.{part}={data if part == 'train' else ''}" for part in ("train", "dev", "test")
    ]
    # The checkout must not be found, and the tests' eight devices do not divide the batches.
    unwanted = ("PYTHONPATH", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (work / "runs/quickstart/checkpoints/1").is_dir()
    # Type checkers of its users see its annotations.
    where = "import asr_jax, pathlib; print(pathlib.Path(asr_jax.__file__).parent)"
    package = subprocess.run([python, "-c", where], cwd=work, capture_output=True, text=True)
    assert Path(package.stdout.strip()) == next(
        (tmp_path / "env/lib").glob("*/site-packages/asr_jax")
    )
    assert Path(package.stdout.strip(), "py.typed").is_file()
