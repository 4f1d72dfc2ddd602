"""`asr-jax export --format nemo`: write a .nemo archive."""

from pathlib import Path
from typing import Literal

from asr_jax.commands.export.check import ReferenceTranscripts
from asr_jax.commands.export.written_back import check_written, prepared_to_write, written_tensors
from asr_jax.config import Config
from asr_jax.export.model_card import ExportCheck
from asr_jax.inference.recognizer import Recognizer
from asr_jax.pretrained.writing.nemo_files import write_archive
from asr_jax.pretrained.writing.sentencepiece_model import model_without_blank

FORM = "NeMo archive"
_ARCHIVE = "model.nemo"
_USE = """
    from nemo.collections.asr.models import ASRModel

    model = ASRModel.restore_from("{name}/model.nemo")
"""


def usage(name: str, config: Config) -> str:
    """Return how to load the archive, for its model card."""
    return _USE.format(name=name)


def prepared(recognizer: Recognizer, *, dtype: str, int8: bool) -> Recognizer:
    """Return the run unchanged. Raises UsageError for a model that the format cannot hold."""
    return prepared_to_write(recognizer, "nemo", dtype=dtype, int8=int8)


def write(
    folder: Path,
    recognizer: Recognizer,
    reference: ReferenceTranscripts,
    *,
    dtype: Literal["float32", "bfloat16"],
    int8: bool,
) -> dict[str, ExportCheck]:
    """Write the archive, import it again and check it."""
    pieces = recognizer.tokenizer.pieces[1:]
    model = model_without_blank(recognizer.tokenizer)
    archive = folder / _ARCHIVE
    write_archive(archive, written_tensors(recognizer), recognizer.config, model, pieces)
    return check_written(archive, recognizer, reference)
