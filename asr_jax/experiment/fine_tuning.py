"""`train --init-from RUN`: start a run with the parameters of another run."""

import functools
import json
import os
from collections.abc import Mapping, Set
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from asr_jax.config import Config
from asr_jax.distributed.processes import first_process
from asr_jax.errors import UsageError
from asr_jax.inference.recognizer import STARTED_FROM, Recognizer, open_any_run
from asr_jax.layers.adapter import merged
from asr_jax.text import Tokenizer
from asr_jax.text_files import escaped
from asr_jax.training.checkpoint import has_checkpoints
from asr_jax.training.state import TrainState
from asr_jax.training.transfer import LabelAxes, label_axes, shape_mismatches, transferred

# Fields that change the meaning of parameters, but not their shapes.
_MUST_AGREE = ("encoder.heads", "encoder.convolution_norm", "joint.activation", "decoder.heads")
# Fields that affect training only.
_TRAINING_ONLY = ("dropout", "layer_drop", "remat", "chunk_frames")
_MOST_LISTED = 12


class Record(TypedDict):
    """The contents of RUN/init_from.json: the source, and what was taken from it or initialized."""

    init_from: str
    checkpoint: str
    pieces_kept: list[str]
    pieces_drawn: list[str]
    networks_drawn: list[str]
    networks_left: list[str]
    origin: NotRequired[dict[str, str]]
    """Source, license and attribution of parameters that another publisher trained."""


class Source(NamedTuple):
    """The model with whose parameters a run starts, as NumPy arrays, equal on every process."""

    params: PyTree
    axes: LabelAxes
    record: Record
    notes: list[str]
    """Lines for the user."""


def read_source(
    source: Path | None, run: Path, config: Config, tokenizer: Tokenizer, abstract_params: PyTree
) -> Source | None:
    """Return the averaged parameters of a run's best checkpoint, or those of an exported model.

    Returns None without a source, and if the run resumes from a checkpoint of its own. Raises
    UsageError if that run started from another source, if adapters have no source, or if the
    parameters do not fit the config's architecture; the message lists the differences.
    """
    if source is None:
        if config.adapter.rank and not has_checkpoints(run, config.checkpoint):
            raise UsageError(
                f"adapter.rank = {config.adapter.rank}: adapters are added to a trained model; "
                "name it with --init-from"
            )
        return None
    if has_checkpoints(run, config.checkpoint):
        _require_started_from(run, source)
        return None
    try:
        opened = open_any_run(source, "best")
    except ValueError as error:
        raise UsageError(f"--init-from {source}: {error}") from error
    differences = _differences(opened.config, config, abstract_params.keys() & opened.params.keys())
    axes = label_axes(opened.config, opened.tokenizer.pieces)
    _require_fitting(source, opened, config, abstract_params, axes, differences)
    record = _record(source, opened, tokenizer, abstract_params)
    # These differences change no shape: training can adapt to them.
    notes = _notes(record) + [f"warning: {text}" for text in differences.values()]
    return Source(jax.device_get(opened.params), axes, record, notes)


def _require_fitting(
    source: Path,
    opened: Recognizer,
    config: Config,
    abstract_params: PyTree,
    axes: LabelAxes,
    differences: Mapping[str, str],
) -> None:
    old, new = opened.config.objective, config.objective
    if old.is_language_model != new.is_language_model:
        raise UsageError(
            f"--init-from {source}: objective.kind is {old.kind!r} in the source, {new.kind!r} in "
            "the config"
        )
    wanted = jax.eval_shape(merged, abstract_params)  # a source has no adapters of the config's
    wrong = shape_mismatches(wanted, opened.params, axes)
    if wrong or any(name in differences for name in _MUST_AGREE):
        wrong = [*differences.values(), *wrong]
        more = f"; and {len(wrong) - _MOST_LISTED} more" if len(wrong) > _MOST_LISTED else ""
        raise UsageError(
            f"--init-from {source}: does not fit the config: "
            f"{'; '.join(wrong[:_MOST_LISTED])}{more}"
        )


def _record(
    source: Path, opened: Recognizer, tokenizer: Tokenizer, abstract_params: PyTree
) -> Record:
    known = set(opened.tokenizer.pieces)
    networks, source_networks = abstract_params.keys(), opened.params.keys()
    record: Record = {
        "init_from": str(source),
        "checkpoint": opened.checkpoint,
        "pieces_kept": [piece for piece in tokenizer.pieces if piece in known],
        "pieces_drawn": [piece for piece in tokenizer.pieces if piece not in known],
        "networks_drawn": sorted(networks - source_networks),
        "networks_left": sorted(source_networks - networks),
    }
    if opened.origin:
        record["origin"] = opened.origin._asdict()
    return record


def _notes(record: Record) -> list[str]:
    source, kept, drawn = record["init_from"], record["pieces_kept"], record["pieces_drawn"]
    notes = [
        f"starting from {source}, {record['checkpoint']}: {len(kept)} of "
        f"{len(kept) + len(drawn)} pieces are in its tokenizer"
    ]
    if drawn := record["networks_drawn"]:
        notes.append(f"initialized randomly: {', '.join(drawn)}, which {source} lacks")
    if "origin" in record:
        license = record["origin"]["license"] or "not stated"
        notes.append(f"license of {record['origin']['source']}, which exports state: {license}")
    if left := record["networks_left"]:
        notes.append(f"not copied: {', '.join(left)}, which the config's model lacks")
    return notes


def initialize_from(
    source: Source, run: Path, state: TrainState, config: Config, tokenizer: Tokenizer
) -> TrainState:
    """Return the state with the source's parameters and its own shardings.

    The first process writes RUN/init_from.json.
    """
    axes = label_axes(config, tokenizer.pieces)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    @functools.partial(jax.jit, out_shardings=shardings, donate_argnums=0)
    def replace_params(state: TrainState, given: PyTree) -> TrainState:
        params = transferred(state.params, given, axes, source.axes)
        return state._replace(params=params, averaged=jax.tree.map(jnp.copy, params))

    _keep_record(run / STARTED_FROM, source.record)
    return replace_params(state, source.params)


@first_process
def forget_source(run: Path) -> None:
    """Delete the record of a start with a source that ended before its first checkpoint."""
    (run / STARTED_FROM).unlink(missing_ok=True)


@first_process
def _keep_record(path: Path, record: Record) -> None:
    partial = path.with_suffix(".tmp")
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    partial.write_text(escaped(text), encoding="utf-8")
    os.replace(partial, path)


def _require_started_from(run: Path, source: Path) -> None:
    path = run / STARTED_FROM
    before = json.loads(path.read_bytes())["init_from"] if path.exists() else None
    if before != str(source):
        start = f"from {before}" if before else "with random parameters"
        raise UsageError(
            f"--init-from {source}: {run} started {start} and has checkpoints; omit the option to "
            "resume it, or choose another directory"
        )


def _differences(old: Config, new: Config, networks: Set[str]) -> dict[str, str]:
    """Return a phrase for every field of features and networks that differs, by name."""
    sections = [
        (section, getattr(old, section), getattr(new, section))
        for section in ("features", "encoder", "predictor", "joint", "decoder")
        if section in networks or section == "features"
    ]
    values = {
        f"{section}.{field.name}": (getattr(old_part, field.name), getattr(new_part, field.name))
        for section, old_part, new_part in sections
        for field in fields(new_part)
        if field.name not in _TRAINING_ONLY
    }
    values["objective.kind"] = (old.objective.kind, new.objective.kind)
    return {
        name: f"{name} is {old_value} in the source, {new_value} in the config"
        for name, (old_value, new_value) in values.items()
        if old_value != new_value
    }
