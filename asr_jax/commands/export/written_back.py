"""Common steps of the exports that other programs' libraries load: transformers and NeMo."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from asr_jax.commands.export.check import ReferenceTranscripts, require_equal
from asr_jax.distributed.sharding import state_shardings
from asr_jax.errors import UsageError
from asr_jax.export.model_card import ExportCheck
from asr_jax.export.params import leaves_by_path
from asr_jax.inference.recognizer import Recognizer, recognize_utterances
from asr_jax.models.composition import split_model
from asr_jax.pretrained.read_source import read_source
from asr_jax.pretrained.writing.expressible import Format, require_expressible
from asr_jax.pretrained.writing.tensors import tensors


def prepared_to_write(
    recognizer: Recognizer, form: Format, *, dtype: str, int8: bool
) -> Recognizer:
    """Return the run unchanged. Raises UsageError for what the format cannot hold."""
    if int8 or dtype != "float32":
        raise UsageError(f"--format {form} writes float32 only; omit --quantize and --dtype")
    try:
        require_expressible(recognizer.config, form)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return recognizer


def written_tensors(recognizer: Recognizer) -> dict[str, np.ndarray]:
    """Return the model's tensors by transformers' names."""
    params = leaves_by_path(jax.device_get(recognizer.params))
    values = {name: np.asarray(value, np.float32) for name, value in params.items()}
    return tensors(values, recognizer.config)


def check_written(
    source: Path, recognizer: Recognizer, reference: ReferenceTranscripts
) -> dict[str, ExportCheck]:
    """Import what was written, and compare its transcripts with the run's."""
    model = read_source(source)
    ours = recognizer.config
    # A hybrid's second head may not be part of the format.
    config = dataclasses.replace(model.config, decoding=ours.decoding, data=ours.data)
    graphdef, abstract = split_model(config, model.tokenizer.vocabulary_size)
    named = {name: np.asarray(value(), np.float32) for name, value in model.parameters.items()}
    params = jax.tree_util.tree_map_with_path(
        lambda path, _: named[jax.tree_util.keystr(path, simple=True, separator=".")], abstract
    )
    params = jax.device_put(params, state_shardings(abstract, recognizer.mesh))
    imported = Recognizer(
        config, model.tokenizer, graphdef, params, recognizer.mesh, recognizer.checkpoint
    )
    texts = recognize_utterances(imported, reference.utterances).texts
    check = reference.compare([text or "" for text in texts])
    require_equal(check, str(source))
    return {"float32": check}
