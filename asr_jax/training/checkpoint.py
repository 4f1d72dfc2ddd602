"""A run's checkpoints: RUN/checkpoints/STEP, written by Orbax in the background.

With `checkpoint.directory` they lie in that folder or bucket instead of RUN.

A checkpoint appears under its name only when all of it is on disk, so a process killed at any
instant leaves the ones before it whole.
"""

import contextlib
import itertools
import logging
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

import jax
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from asr_jax.config import CheckpointConfig
from asr_jax.distributed.processes import first_process
from asr_jax.training.state import TrainState

# A mean loss is still good up to this many times the lowest one.
GOOD_FACTOR = 1.5

_policies = ocp.training.preservation_policies


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of another model; one line."""


class Metadata(TypedDict):
    """What a run saves with its checkpoints, as JSON."""

    config: dict[str, object]
    """Every field under its dotted name."""
    utterances: str
    """Fingerprint of the utterances that the run trains on."""


class SavedMetadata(Metadata):
    """With the state's mean losses, which tell later whether a checkpoint was a good one."""

    smoothed_loss: float
    lowest_loss: float


@contextlib.contextmanager
def open_checkpoints(run: Path, config: CheckpointConfig) -> Iterator[ocp.training.Checkpointer]:
    """For writing: keeps the newest `config.keep` and the best by what was measured on dev.

    Waits at the end until the last save is on disk.
    """
    # Orbax reports half-written directories that it clears away, and failures by whole tracebacks.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # Orbax's annotations do not fit its own policies.
    policy: Any = _policies.AnyPreservationPolicy(
        [
            _policies.LatestN(config.keep),
            _policies.BestN(
                get_metric_fn=_only,
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    checkpointer = ocp.training.Checkpointer(
        _directory(run, config), preservation_policy=policy, cleanup_tmp_directories=True
    )
    try:
        yield checkpointer
    except CheckpointError:
        # Closing raises once more what `save` or `finish` has raised.
        with contextlib.suppress(Exception):
            checkpointer.close()
        raise
    except BaseException:
        try:
            checkpointer.close()
        except Exception as error:
            print(_unwritten(checkpointer.directory, error), file=sys.stderr)
        raise
    else:
        checkpointer.close()


@first_process
def require_writable(run: Path, config: CheckpointConfig) -> None:
    """Raises CheckpointError where no file can be made where checkpoints go: now, not at a save."""
    directory = _directory(run, config)
    probe = directory.parent / "writable.tmp"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except Exception as error:
        raise CheckpointError(
            f"{directory}: cannot be written to ({_first_line(error)})"
        ) from error


@first_process
def require_room(run: Path, config: CheckpointConfig, abstract: PyTree) -> None:
    """Raises CheckpointError where the disk has less left than a checkpoint of `abstract`'s leaves.

    What a bucket has left is not known, nor what some mounted ones have, which say that they have
    no size at all.
    """
    if "://" in config.directory:
        return
    folder = Path(config.directory or run)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
    disk = shutil.disk_usage(folder)
    if disk.total and disk.free < needed:
        raise CheckpointError(
            f"{folder}: the disk has {disk.free / 1e6:.1f} MB left, a checkpoint takes up to "
            f"{needed / 1e6:.1f} MB"
        )


def has_checkpoints(run: Path, config: CheckpointConfig) -> bool:
    """Whether any lies where a run's checkpoints go, be it readable or not."""
    directory = _directory(run, config)
    return directory.exists() and any(path.name.isdigit() for path in directory.iterdir())


def save(
    checkpointer: ocp.training.Checkpointer,
    state: TrainState,
    *,
    dev_metric: float | None,
    metadata: Metadata,
) -> None:
    """Starts writing the state; returns once it is copied, so that the next step may overwrite it.

    `dev_metric` was measured on dev; lower is better. `metadata` is JSON, which `saved_metadata`
    returns together with the state's mean losses. Raises CheckpointError if this save, or the one
    before it, could not be written.
    """
    step = int(state.step)
    means = {name: float(getattr(state, name)) for name in ("smoothed_loss", "lowest_loss")}
    saved: PyTree = metadata | means
    measured: PyTree = None if dev_metric is None else {"dev_metric": dev_metric}
    try:
        checkpointer.wait()
        checkpointer.save_async(
            step, state._asdict(), metrics=measured, custom_metadata=saved, force=True
        )
    except Exception as error:
        raise CheckpointError(_unwritten(checkpointer.directory, error)) from error


def finish(checkpointer: ocp.training.Checkpointer) -> None:
    """Returns when everything is on disk; raises CheckpointError where it could not be written."""
    try:
        checkpointer.wait()
    except Exception as error:
        raise CheckpointError(_unwritten(checkpointer.directory, error)) from error


def restore(
    checkpointer: ocp.training.Checkpointer, abstract: TrainState
) -> tuple[TrainState | None, list[str]]:
    """The newest checkpoint that can be read, or None where there are none at all, and warnings.

    Newer ones, which cannot be read, are moved to RUN/unreadable, never deleted. Raises
    CheckpointError for one of another model, and where none can be read: nothing is moved then.
    """
    directory = epath.Path(checkpointer.directory)
    unreadable: dict[int, str] = {}
    for step in sorted((c.step for c in checkpointer.checkpoints), reverse=True):
        _require_match(checkpointer, step, abstract.params, "params")
        try:
            state = TrainState(**checkpointer.load(step, abstract._asdict()))
        except Exception as error:
            unreadable[step] = _first_line(error)
            continue
        aside = _set_aside(checkpointer, unreadable, "unreadable")
        return state, [
            f"checkpoint {later} cannot be read ({reason}) and was moved to {aside}"
            for later, reason in unreadable.items()
        ]
    if unreadable:
        step, reason = next(iter(unreadable.items()))
        raise CheckpointError(
            f"{directory}: none of its checkpoints {sorted(unreadable)} can be read, {step}: "
            f"{reason}; they are left as they are, choose another run directory to start anew"
        )
    return None, []


def roll_back(
    checkpointer: ocp.training.Checkpointer, abstract: TrainState
) -> tuple[TrainState | None, str]:
    """The newest checkpoint of before a divergence, or None where there is none, and a note.

    It is one whose mean loss was at most GOOD_FACTOR times the lowest until then. Newer ones are
    moved to RUN/diverged. Raises CheckpointError where the save under way could not be written.
    """
    finish(checkpointer)
    newer = []
    for step in sorted((c.step for c in checkpointer.checkpoints), reverse=True):
        metadata = saved_metadata(checkpointer, step)
        if metadata["smoothed_loss"] <= GOOD_FACTOR * metadata["lowest_loss"]:
            state = TrainState(**checkpointer.load(step, abstract._asdict()))
            aside = _set_aside(checkpointer, newer, "diverged")
            moved = f"; checkpoints {newer} were moved to {aside}" if newer else ""
            return state, f"going back to step {step}{moved}"
        newer.append(step)
    return None, ""


def _set_aside(
    checkpointer: ocp.training.Checkpointer, steps: Iterable[int], folder: str
) -> epath.Path:
    """Moves checkpoints to a folder beside the others, which it returns."""
    directory = epath.Path(checkpointer.directory)
    aside = directory.parent / folder
    steps = list(steps)
    for step in steps if jax.process_index() == 0 else ():
        aside.mkdir(exist_ok=True)
        (directory / str(step)).rename(_free_name(aside / str(step)))
    if steps:
        multihost_utils.sync_global_devices("set aside")
        checkpointer.reload()
    return aside


def saved_metadata(checkpointer: ocp.training.Checkpointer, step: int) -> SavedMetadata:
    """What the checkpoint of this step was saved with as `metadata`."""
    metadata: PyTree = checkpointer.metadata(step).custom_metadata or {}
    return metadata


def _free_name(path: epath.Path) -> epath.Path:
    """The path, or where it is taken, with the first number that is not."""
    names = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def measured_on_dev(checkpointer: ocp.training.Checkpointer) -> dict[int, float]:
    """The figure on dev of every checkpoint that was saved with one, by step."""
    return {c.step: _only(c.metrics) for c in checkpointer.checkpoints if c.metrics}


def _only(metrics: PyTree) -> float:
    (value,) = metrics.values()
    return value


def load_averaged(
    run: Path, which: str, abstract_params: PyTree, config: CheckpointConfig
) -> tuple[PyTree, str]:
    """Averaged parameters of the run's checkpoint `which`, and which steps these are.

    which: "best" by the figure on dev (the newest where none was measured), "last", a step, or
    "average:N", the mean over the newest N.
    """
    directory = _directory(run, config)
    if not directory.is_dir():
        raise CheckpointError(f"{directory.parent}: holds no checkpoints yet")
    with ocp.training.Checkpointer(directory) as checkpointer:
        steps = _choose(checkpointer, which)
        loaded = [_load_averaged(checkpointer, step, abstract_params) for step in steps]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *loaded)
    return mean, f"{which} ({', '.join(map(str, steps))})"


def _directory(run: Path, config: CheckpointConfig) -> epath.Path:
    # What is raised it reports as well, by whole tracebacks.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    named = f"checkpoint.directory = {config.directory!r}"
    try:
        directory = epath.Path(config.directory or run.absolute()) / "checkpoints"
        directory.exists()
        return directory
    except KeyError:  # what epath says of gopher://
        raise CheckpointError(
            f"{named}: must be a folder, or an address such as gs://BUCKET/RUN or s3://BUCKET/RUN"
        ) from None
    except ImportError as error:
        raise CheckpointError(
            f"{named}: needs a package, pip install gcsfs for gs://, s3fs for s3:// "
            f"({_first_line(error)})"
        ) from error
    # Of a bucket: no right to it, no way to it.
    except Exception as error:
        raise CheckpointError(f"{named}: {_first_line(error)}") from error


def _choose(checkpointer: ocp.training.Checkpointer, which: str) -> list[int]:
    steps = sorted(c.step for c in checkpointer.checkpoints)
    if not steps:
        raise CheckpointError(
            f"{epath.Path(checkpointer.directory).parent}: holds no checkpoints yet"
        )
    kind, _, count = which.partition(":")
    if which == "last":
        return steps[-1:]
    if which == "best":
        measured = measured_on_dev(checkpointer)
        return [min(measured, key=lambda step: (measured[step], step))] if measured else steps[-1:]
    if kind == "average" and count.isdigit() and 0 < int(count) <= len(steps):
        return steps[-int(count) :]
    if which.isdigit() and int(which) in steps:
        return [int(which)]
    raise CheckpointError(
        f"--checkpoint {which}: must be best, last, average:1..{len(steps)} or one of {steps}"
    )


def _load_averaged(
    checkpointer: ocp.training.Checkpointer, step: int, abstract_params: PyTree
) -> PyTree:
    _require_match(checkpointer, step, abstract_params, "averaged")
    try:
        names = TrainState._fields
        whole = dict.fromkeys(names, ocp.PLACEHOLDER)
        saved = checkpointer.metadata(step).metadata
        for name in names:
            whole[name] = jax.tree.map(lambda _: ocp.PLACEHOLDER, saved[name])
        whole["averaged"] = abstract_params
        return checkpointer.load(step, whole)["averaged"]
    except Exception as error:
        path = epath.Path(checkpointer.directory) / str(step)
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error


def _require_match(
    checkpointer: ocp.training.Checkpointer, step: int, abstract_params: PyTree, name: str
) -> None:
    """Raises CheckpointError where the saved parameters have other names or shapes.

    Known before they are loaded: Orbax leaves much behind that complains when a load fails.
    """
    try:
        saved = checkpointer.metadata(step).metadata[name]
    except Exception:
        return  # damaged, which loading it will tell
    saved, expected = _shapes(saved), _shapes(abstract_params)
    for path in sorted(saved.keys() | expected.keys()):
        if saved.get(path) != expected.get(path):
            checkpoint = epath.Path(checkpointer.directory) / str(step)
            raise CheckpointError(
                f"{checkpoint} is of another model than the config's: {path} is "
                f"{saved.get(path, 'missing')}, expected {expected.get(path, 'none')}"
            )


def _shapes(params: PyTree) -> dict[str, tuple[int, ...]]:
    return {
        "/".join(str(part.key) for part in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def _unwritten(directory: PathLike[str], error: Exception) -> str:
    others = sys.unraisablehook

    def report(unraisable) -> None:  # its type has a name in stub files only
        # Each of the writers that Orbax now abandons complains so when it is collected.
        if "Event loop is closed" not in str(unraisable.exc_value):
            others(unraisable)

    sys.unraisablehook = report
    # And so does Python of what they had not begun, at times after the last line of ours.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    reason = _first_line(error)
    return f"{directory}: a checkpoint could not be written ({reason}); earlier ones are kept"


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.partition(" [source locations")[0][:400]
