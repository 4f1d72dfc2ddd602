"""`train --init-from RUN`: a run that begins with the parameters of another one."""

import functools
import json
import os
from collections.abc import Set
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from asr_jax.config import Config
from asr_jax.distributed.processes import on_first
from asr_jax.errors import UsageError
from asr_jax.inference.recognizer import open_any_run
from asr_jax.text import Tokenizer
from asr_jax.training.checkpoint import has_checkpoints
from asr_jax.training.state import TrainState
from asr_jax.training.transfer import LabelAxes, label_axes, shape_mismatches, transferred

_RECORD = "init_from.json"
# Fields that change what parameters mean, but no shape.
_MUST_AGREE = ("encoder.heads", "joint.activation", "decoder.heads")
_OF_TRAINING = ("dropout", "layer_drop", "remat", "chunk_frames")
_MOST_LISTED = 12


class Source(NamedTuple):
    """The model that a run begins with: NumPy arrays, the same for every process."""

    params: Any
    axes: LabelAxes
    record: dict[str, Any]
    """For RUN/init_from.json."""
    notes: list[str]
    """What the user should know."""


def read_source(
    source: Path | None, run: Path, config: Config, tokenizer: Tokenizer, abstract_params: Any
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
    option = f"--init-from {source}"
    try:
        opened = open_any_run(source, "best")
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error
    there, here = opened.config.objective.kind, config.objective.kind
    if "language_model" in (there, here) and there != here:
        raise UsageError(f"{option}: objective.kind is {there!r} there, {here!r} here")
    networks = abstract_params.keys() & opened.params.keys()
    differing = _differing(opened.config, config, networks)
    axes = label_axes(opened.config, opened.tokenizer.pieces)
    wrong = shape_mismatches(abstract_params, opened.params, axes)
    if wrong or any(name in differing for name in _MUST_AGREE):
        wrong = [*differing.values(), *wrong]
        more = f"; and {len(wrong) - _MOST_LISTED} more" if len(wrong) > _MOST_LISTED else ""
        raise UsageError(
            f"{option}: does not fit the config: {'; '.join(wrong[:_MOST_LISTED])}{more}"
        )
    pieces, theirs = tokenizer.pieces, set(opened.tokenizer.pieces)
    here, there = abstract_params.keys(), opened.params.keys()
    record = {
        "init_from": str(source),
        "checkpoint": opened.checkpoint,
        "pieces_kept": [piece for piece in pieces if piece in theirs],
        "pieces_drawn": [piece for piece in pieces if piece not in theirs],
        "networks_drawn": sorted(here - there),
        "networks_left": sorted(there - here),
    }
    notes = [
        f"beginning with {source}, {opened.checkpoint}: {len(record['pieces_kept'])} of "
        f"{len(pieces)} pieces are known there"
    ]
    if drawn := record["networks_drawn"]:
        notes.append(f"drawn anew: {', '.join(drawn)}, which {source} lacks")
    if left := record["networks_left"]:
        notes.append(f"left out: {', '.join(left)}, for which the config has no use")
    # Of no shape, so that training may get used to them.
    notes += [f"warning: {text}" for text in differing.values()]
    return Source(jax.device_get(opened.params), axes, record, notes)


def initialize_from(
    source: Source, run: Path, state: TrainState, config: Config, tokenizer: Tokenizer
) -> TrainState:
    """The initial state with the source's parameters, lying as before; RUN/init_from.json tells."""
    axes = label_axes(config, tokenizer.pieces)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    @functools.partial(jax.jit, out_shardings=shardings, donate_argnums=0)
    def begin(state: TrainState, given: Any) -> TrainState:
        params = transferred(state.params, given, axes, source.axes)
        return state._replace(params=params, averaged=jax.tree.map(jnp.copy, params))

    on_first(lambda: _keep_record(run / _RECORD, source.record))
    return begin(state, source.params)


def _keep_record(path: Path, record: dict[str, Any]) -> None:
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
