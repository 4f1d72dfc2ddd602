"""A folder that transformers loads: weights, configs and tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file  # pyright: ignore[reportMissingImports]

from asr_jax.config import Config
from asr_jax.pretrained.nemo_names import STREAMING, name_in
from asr_jax.pretrained.writing.sentencepiece_model import model_without_blank
from asr_jax.pretrained.writing.tokenizer_json import tokenizer_json
from asr_jax.pretrained.writing.transformers_files import (
    generation_config,
    labels_of,
    model_config,
    processor_files,
)
from asr_jax.text import Tokenizer


def write_folder(
    folder: Path, tensors: Mapping[str, np.ndarray], config: Config, tokenizer: Tokenizer
) -> None:
    """Write the files of a model. The CTC head beside a transducer has no place in them."""
    labels = labels_of(config, tokenizer)
    named = {
        name_in(STREAMING, name) if config.encoder.chunk_ms else name: value
        for name, value in tensors.items()
        if config.objective.kind == "ctc" or not name.startswith("ctc_head.")
    }
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    model = model_without_blank(tokenizer)
    (folder / "tokenizer.model").write_bytes(model)
    files = {
        "config.json": model_config(config, labels),
        "generation_config.json": generation_config(config, labels),
        "tokenizer.json": tokenizer_json(model, labels.appended),
        **processor_files(config, labels),
    }
    for name, fields in files.items():
        text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")
