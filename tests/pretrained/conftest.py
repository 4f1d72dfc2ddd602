from collections.abc import Callable
from pathlib import Path

import pytest

from asr_jax.commands import import_model
from asr_jax.inference.recognizer import Recognizer, open_run
from tests.pretrained.references import MODELS


@pytest.fixture(scope="session")
def imported(tmp_path_factory) -> Callable[[str], Path]:
    """Import a model of `references.MODELS` once, and return the folder."""
    folder = tmp_path_factory.mktemp("imported")

    def imported(name: str) -> Path:
        out = folder / name
        if not out.exists():
            assert import_model.run([str(MODELS / name), str(out)]) == 0
        return out

    return imported


@pytest.fixture(scope="session")
def opened(imported) -> Callable[[str], Recognizer]:
    """Import a model and open it."""
    return lambda name: open_run(imported(name), "best")
