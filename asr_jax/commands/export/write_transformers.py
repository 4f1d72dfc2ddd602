"""`asr-jax export --format transformers`: write a folder that transformers loads."""

from pathlib import Path
from typing import Literal

from asr_jax.commands.export.check import ReferenceTranscripts
from asr_jax.commands.export.written_back import check_written, prepared_to_write, written_tensors
from asr_jax.config import Config
from asr_jax.export.model_card import ExportCheck
from asr_jax.inference.recognizer import Recognizer
from asr_jax.pretrained.writing.transformers_folder import write_folder

FORM = "transformers"
_USE = """
    from transformers import {auto}, AutoProcessor

    processor = AutoProcessor.from_pretrained("{name}")
    model = {auto}.from_pretrained("{name}")
"""
_AUTO = {"ctc": "AutoModelForCTC", "transducer": "AutoModelForRNNT", "tdt": "AutoModelForTDT"}


def usage(name: str, config: Config) -> str:
    """Return how to load the folder, for its model card."""
    return _USE.format(name=name, auto=_AUTO[config.objective.kind])


def prepared(recognizer: Recognizer, *, dtype: str, int8: bool) -> Recognizer:
    """Return the run unchanged. Raises UsageError for a model that the format cannot hold."""
    return prepared_to_write(recognizer, "transformers", dtype=dtype, int8=int8)


def write(
    folder: Path,
    recognizer: Recognizer,
    reference: ReferenceTranscripts,
    *,
    dtype: Literal["float32", "bfloat16"],
    int8: bool,
) -> dict[str, ExportCheck]:
    """Write weights, configs and tokenizer, import them again and check them."""
    tensors = written_tensors(recognizer)
    write_folder(folder, tensors, recognizer.config, recognizer.tokenizer)
    return check_written(folder, recognizer, reference)
