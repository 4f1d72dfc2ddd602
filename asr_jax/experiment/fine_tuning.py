"""`train --init-from RUN`: a run that begins with the parameters of another one."""

import functools
import json
import os
from collections.abc import Mapping, Set
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from asr_jax.config import Config
from asr_jax.distributed.processes import first_process
from asr_jax.errors import UsageError
from asr_jax.inference.recognizer import Recognizer, open_any_run
from asr_jax.text import Tokenizer
from asr_jax.training.checkpoint import has_checkpoints
from asr_jax.training.state import TrainState
from asr_jax.training.transfer import LabelAxes, label_axes, shape_mismatches, transferred

_RECORD = "init_from.json"
# Fields that change what parameters mean, but no shape.
_MUST_AGREE = ("encoder.heads", "joint.activation", "decoder.heads")
_OF_TRAINING = ("dropout", "layer_drop", "remat", "chunk_frames")
_MOST_LISTED = 12


class Record(TypedDict):
    """What RUN/init_from.json holds."""

    init_from: str
    checkpoint: str
    pieces_kept: list[str]
    pieces_drawn: list[str]
    networks_drawn: list[str]
    networks_left: list[str]


class Source(NamedTuple):
    """The model that a run begins with: NumPy arrays, the same for every process."""

    params: PyTree
    axes: LabelAxes
    record: Record
    notes: list[str]
    """What the user should know."""


def read_source(
    source: Path | None, run: Path, config: Config, tokenizer: Tokenizer, abstract_params: PyTree
) -> Source | None:
    """The averaged parameters of the best checkpoint, or those of an exported model.

    None without a source, and where the run goes on from a checkpoint of its own. Raises UsageError
    where it did not begin from there, and, listing what does not fit, where they are of another
    architecture than the config's.
    """
    if source is None:
        return None
    if has_checkpoints(run, config.checkpoint):
        _require_begun_from(run, source)
        return None
    try:
        opened = open_any_run(source, "best")
    except ValueError as error:
        raise UsageError(f"--init-from {source}: {error}") from error
    differing = _differing(opened.config, config, abstract_params.keys() & opened.params.keys())
    axes = label_axes(opened.config, opened.tokenizer.pieces)
    _require_fitting(source, opened, config, abstract_params, axes, differing)
    record = _record(source, opened, tokenizer, abstract_params)
    # Of no shape, so that training may get used to them.
    notes = _notes(record) + [f"warning: {text}" for text in differing.values()]
    return Source(jax.device_get(opened.params), axes, record, notes)


def _require_fitting(
    source: Path,
    opened: Recognizer,
    config: Config,
    abstract_params: PyTree,
    axes: LabelAxes,
    differing: Mapping[str, str],
) -> None:
    there, here = opened.config.objective, config.objective
    if there.is_language_model != here.is_language_model:
        raise UsageError(
            f"--init-from {source}: objective.kind is {there.kind!r} there, {here.kind!r} here"
        )
    wrong = shape_mismatches(abstract_params, opened.params, axes)
    if wrong or any(name in differing for name in _MUST_AGREE):
        wrong = [*differing.values(), *wrong]
        more = f"; and {len(wrong) - _MOST_LISTED} more" if len(wrong) > _MOST_LISTED else ""
        raise UsageError(
            f"--init-from {source}: does not fit the config: "
            f"{'; '.join(wrong[:_MOST_LISTED])}{more}"
        )


def _record(
    source: Path, opened: Recognizer, tokenizer: Tokenizer, abstract_params: PyTree
) -> Record:
    known = set(opened.tokenizer.pieces)
    here, there = abstract_params.keys(), opened.params.keys()
    return {
        "init_from": str(source),
        "checkpoint": opened.checkpoint,
        "pieces_kept": [piece for piece in tokenizer.pieces if piece in known],
        "pieces_drawn": [piece for piece in tokenizer.pieces if piece not in known],
        "networks_drawn": sorted(here - there),
        "networks_left": sorted(there - here),
    }


def _notes(record: Record) -> list[str]:
    source, kept, drawn = record["init_from"], record["pieces_kept"], record["pieces_drawn"]
    notes = [
        f"beginning with {source}, {record['checkpoint']}: {len(kept)} of "
        f"{len(kept) + len(drawn)} pieces are known there"
    ]
    if drawn := record["networks_drawn"]:
        notes.append(f"drawn anew: {', '.join(drawn)}, which {source} lacks")
    if left := record["networks_left"]:
        notes.append(f"left out: {', '.join(left)}, for which the config has no use")
    return notes


def initialize_from(
    source: Source, run: Path, state: TrainState, config: Config, tokenizer: Tokenizer
) -> TrainState:
    """The initial state with the source's parameters, lying as before; RUN/init_from.json tells."""
    axes = label_axes(config, tokenizer.pieces)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    @functools.partial(jax.jit, out_shardings=shardings, donate_argnums=0)
    def begin(state: TrainState, given: PyTree) -> TrainState:
        params = transferred(state.params, given, axes, source.axes)
        return state._replace(params=params, averaged=jax.tree.map(jnp.copy, params))

    _keep_record(run / _RECORD, source.record)
    return begin(state, source.params)


@first_process
def _keep_record(path: Path, record: Record) -> None:
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    os.replace(partial, path)


def _require_begun_from(run: Path, source: Path) -> None:
    path = run / _RECORD
    before = json.loads(path.read_text())["init_from"] if path.exists() else None
    if before != str(source):
        what = f"from {before}" if before else "with random parameters"
        raise UsageError(
            f"--init-from {source}: {run} began {what} and has checkpoints; leave the option out "
            "to go on, or choose another directory"
        )


def _differing(there: Config, here: Config, networks: Set[str]) -> dict[str, str]:
    """The fields of features and of the networks that differ, by name, as phrases."""
    sections = [
        (section, getattr(there, section), getattr(here, section))
        for section in ("features", "encoder", "predictor", "joint", "decoder")
        if section in networks or section == "features"
    ]
    values = {
        f"{section}.{field.name}": (getattr(old, field.name), getattr(new, field.name))
        for section, old, new in sections
        for field in fields(new)
        if field.name not in _OF_TRAINING
    }
    values["objective.kind"] = (there.objective.kind, here.objective.kind)
    return {
        name: f"{name} is {old} there, {new} here"
        for name, (old, new) in values.items()
        if old != new
    }
