"""`asr-jax export --format params`: write a folder for asr_jax itself."""

from pathlib import Path
from typing import Literal

import jax

from asr_jax.commands.export.check import ReferenceTranscripts, require_equal
from asr_jax.config import Config
from asr_jax.config_file import write_config
from asr_jax.export.model_card import ExportCheck
from asr_jax.export.origin import origin_metadata
from asr_jax.export.params import save_params
from asr_jax.inference.recognizer import EXPORTED, Recognizer, open_run, recognize_utterances

FORM = "parameters"
_USE = """
    import asr_jax

    model = asr_jax.load("{name}")
    print(model.transcribe("recording.flac")[0].text)

or `asr-jax transcribe {name} recording.flac`.
"""


def usage(name: str, config: Config) -> str:
    """Return how to run the folder, for its model card."""
    return _USE.format(name=name)


def prepared(recognizer: Recognizer, *, dtype: str, int8: bool) -> Recognizer:
    """Return the run unchanged: the format holds every model."""
    return recognizer


def write(
    folder: Path,
    recognizer: Recognizer,
    reference: ReferenceTranscripts,
    *,
    dtype: Literal["float32", "bfloat16"],
    int8: bool,
) -> dict[str, ExportCheck]:
    """Write model.safetensors, config.json and tokenizer.model, load them again and check them."""
    save_params(
        folder / EXPORTED,
        jax.device_get(recognizer.params),
        dtype=dtype,
        int8=int8,
        about={"checkpoint": recognizer.checkpoint, **origin_metadata(recognizer.origin)},
    )
    write_config(recognizer.config, folder / "config.json")
    (folder / "tokenizer.model").write_bytes(recognizer.tokenizer.model)
    texts = recognize_utterances(open_run(folder, "best"), reference.utterances).texts
    check = reference.compare([text or "" for text in texts])
    if not int8 and dtype == "float32":
        require_equal(check, str(folder))
    return {"int8" if int8 else dtype: check}
