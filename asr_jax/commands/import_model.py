"""`asr-jax import SOURCE OUT`: a pretrained model as a folder that this package uses."""

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from asr_jax.commands.arguments import parse, require_new_folder
from asr_jax.commands.export.write_params import usage
from asr_jax.config import MeshConfig
from asr_jax.config_file import write_config
from asr_jax.distributed.devices import prepare_devices
from asr_jax.errors import UsageError, name_full_disk
from asr_jax.export.model_card import IMPORTED, imported_model_card
from asr_jax.export.origin import origin_metadata
from asr_jax.export.params import leaves_by_path, write_params
from asr_jax.inference.recognizer import EXPORTED
from asr_jax.models.composition import split_model
from asr_jax.pretrained.read_source import Pretrained, read_source
from asr_jax.text_files import escaped

_BYTES_PER_VALUE = 4


@dataclass(frozen=True, kw_only=True)
class Options:
    """Import a pretrained FastConformer model: Parakeet (CTC, RNN-T, TDT, hybrid) or Nemotron.

    OUT is what export --format params writes; transcribe, evaluate, export and train --init-from
    take it. No code in SOURCE is run, and no torch is needed."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """NeMo archive (.nemo), or a folder of transformers with config.json and safetensors."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write; must be new or empty."""


def run(arguments: list[str]) -> int:
    """Write the folder, and print what it holds."""
    options = parse(Options, arguments, program="asr-jax import")
    require_new_folder(options.out)
    prepare_devices(MeshConfig())
    try:
        model = read_source(options.source)
        shapes = _shapes(model)
        _require_space(options.out, shapes)
        with name_full_disk(options.out):
            _write(options.out, model, shapes)
    except MemoryError:
        raise UsageError(f"{options.source}: not enough memory for its weights") from None
    encoder = model.config.encoder
    print(
        f"{options.out}: {model.config.objective.kind}, {_values(shapes)} "
        f"parameters, {encoder.layers} blocks {encoder.width} wide, "
        f"{model.tokenizer.vocabulary_size} labels; license: "
        f"{model.origin.license or 'not stated by its source'}"
    )
    return 0


def _shapes(model: Pretrained) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the config's parameters, all of which the model must have."""
    _, abstract = split_model(model.config, model.tokenizer.vocabulary_size)
    shapes = {name: leaf.shape for name, leaf in leaves_by_path(abstract).items()}
    assert shapes.keys() == model.parameters.keys(), shapes.keys() ^ model.parameters.keys()
    return shapes


def _values(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def _require_space(out: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise UsageError where the disk has no space for the parameters."""
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    needed, free = _BYTES_PER_VALUE * _values(shapes), shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(
            f"{out}: the parameters need {needed / 1e9:.2f} GB, and the disk has "
            f"{free / 1e9:.2f} GB free"
        )


def _write(out: Path, model: Pretrained, shapes: dict[str, tuple[int, ...]]) -> None:
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_params(
        partial / EXPORTED,
        shapes,
        lambda name: model.parameters[name](),
        about={"checkpoint": IMPORTED, **origin_metadata(model.origin)},
    )
    write_config(model.config, partial / "config.json")
    (partial / "tokenizer.model").write_bytes(model.tokenizer.model)
    card = imported_model_card(
        out.name,
        model.config,
        parameters=_values(shapes),
        origin=model.origin,
        use=usage(out.name, model.config),
    )
    (partial / "README.md").write_text(escaped(card), encoding="utf-8")
    os.replace(partial, out)
