"""A run's checkpoints, which Orbax writes to RUN/checkpoints/STEP in the background.

Parameters that never change are not among them (frozen_storage.py).

With `checkpoint.directory`, they are stored in that folder or bucket instead of RUN.

A checkpoint gets its name only when all of it is on disk, so a process that is killed at any
instant leaves the earlier checkpoints intact.
"""

import contextlib
import glob
import itertools
import logging
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
from etils import epath
from etils.epath.gpath import PosixGPath
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from asr_jax.config import CheckpointConfig, OptimizerConfig
from asr_jax.distributed.processes import first_process
from asr_jax.training.frozen import not_wholly_frozen
from asr_jax.training.frozen_storage import (
    FROZEN,
    frozen_paths,
    joined,
    keep_frozen_parameters,
    read_frozen_parameters,
    without,
)
from asr_jax.training.state import TrainState

# A checkpoint is good if its mean loss is at most this many times the lowest mean loss.
GOOD_FACTOR = 1.5

# Characters of patterns, which searches in a bucket cannot take literally.
_PATTERN_CHARACTERS = set("*?[]")

_policies = ocp.training.preservation_policies


class _LiteralPath(PosixGPath):
    """A path whose own characters are not part of the patterns that `glob` looks for.

    Orbax finds the files of the processes with `glob`, which epath applies to the whole path. In
    `runs/exp[1]`, a save would therefore find nothing to merge into the checkpoint.
    """

    def glob(self, pattern: str) -> Iterator["_LiteralPath"]:
        return (self / name for name in glob.glob(pattern, root_dir=str(self)))


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model; the message is one line."""


class Metadata(TypedDict):
    """JSON that a run saves with its checkpoints."""

    config: dict[str, object]
    """Every field under its dotted name."""
    utterances: str
    """Fingerprint of the utterances that the run trains on."""
    buckets: NotRequired[list[list[float]]]
    """Seconds, labels and utterances of the buckets; earlier versions did not save them."""


class SavedMetadata(Metadata):
    """Metadata with the state's mean losses, by which `roll_back` finds a good checkpoint."""

    smoothed_loss: float
    lowest_loss: float


@contextlib.contextmanager
def open_checkpoints(run: Path, config: CheckpointConfig) -> Iterator[ocp.training.Checkpointer]:
    """Open a run's checkpoints for writing.

    The newest `config.keep` checkpoints are kept, and the best by its figure on dev. On exit, waits
    until the last save is on disk.
    """
    # Orbax logs incomplete directories that it deletes, and logs failures with tracebacks.
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
        # Closing repeats the error that `save` or `finish` raised.
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
    """Raise CheckpointError if checkpoints cannot be written to their directory."""
    directory = _directory(run, config)
    # Another start may be checking the same directory.
    probe = directory.parent / f"writable-{secrets.token_hex(4)}.tmp"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:
        raise CheckpointError(
            f"{directory}: cannot be written to ({_first_line(error)})"
        ) from error


@first_process
def require_room(run: Path, config: CheckpointConfig, abstract: PyTree) -> None:
    """Raise CheckpointError if the disk has less space left than a checkpoint of `abstract` takes.

    The space left in a bucket is unknown. Some mounted buckets report a total size of zero.
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


def keep_frozen(
    checkpointer: ocp.training.Checkpointer, state: TrainState, config: OptimizerConfig
) -> None:
    """Store a new run's parameters that no step changes, before its first checkpoint."""
    try:
        keep_frozen_parameters(
            _folder(checkpointer), state.params, not_wholly_frozen(state.params, config)
        )
    except Exception as error:
        raise CheckpointError(_unwritten(checkpointer.directory, error)) from error


def has_checkpoints(run: Path, config: CheckpointConfig) -> bool:
    """Return whether a run has any checkpoint, readable or not."""
    return bool(_steps_on_disk(_directory(run, config)))


def newest_metadata(run: Path, config: CheckpointConfig) -> tuple[int, SavedMetadata] | None:
    """Return the step and metadata of a run's newest checkpoint, or of one that can be read."""
    directory = _directory(run, config)
    for step in reversed(_steps_on_disk(directory)):
        # A damaged checkpoint: `restore` reports it.
        with contextlib.suppress(Exception):
            metadata: PyTree = ocp.metadata(directory / str(step)).custom_metadata
            if metadata:
                return step, metadata
    return None


def _steps_on_disk(directory: epath.Path) -> list[int]:
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def save(
    checkpointer: ocp.training.Checkpointer,
    state: TrainState,
    *,
    dev_metric: float | None,
    metadata: Metadata,
) -> None:
    """Start writing the state, and return once it is copied, so that a step may overwrite it.

    `dev_metric` is the figure measured on dev; lower is better. Raises CheckpointError if this save
    or the one before it could not be written, or if the run's first cannot be read back.
    """
    step = int(state.step)
    means = {name: float(getattr(state, name)) for name in ("smoothed_loss", "lowest_loss")}
    saved: PyTree = metadata | means
    measured: PyTree = None if dev_metric is None else {"dev_metric": dev_metric}
    _wait(checkpointer)
    if len(checkpointer.checkpoints) == 1:
        _require_readable(checkpointer)
    try:
        checkpointer.save_async(
            step,
            saved_part(checkpointer, state),
            metrics=measured,
            custom_metadata=saved,
            force=True,
        )
    except Exception as error:
        raise CheckpointError(_unwritten(checkpointer.directory, error)) from error


def saved_part(checkpointer: ocp.training.Checkpointer, state: TrainState) -> dict[str, PyTree]:
    """Return the state, abstract or not, without the parameters that RUN/frozen holds."""
    stored = frozen_paths(_folder(checkpointer))
    part = state._asdict()
    if stored:
        part |= {name: without(part[name], stored) for name in ("params", "averaged")}
    return part


def _load_state(
    checkpointer: ocp.training.Checkpointer, step: int, abstract: TrainState
) -> TrainState:
    loaded = checkpointer.load(step, saved_part(checkpointer, abstract))
    frozen = read_frozen_parameters(_folder(checkpointer), abstract.params)
    if frozen:
        loaded["params"] = joined(loaded["params"], frozen)
        # A step donates both trees, which must not share memory.
        copied = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))(frozen)
        loaded["averaged"] = joined(loaded["averaged"], copied)
    return TrainState(**loaded)


def _folder(checkpointer: ocp.training.Checkpointer) -> epath.Path:
    return epath.Path(checkpointer.directory).parent


def finish(checkpointer: ocp.training.Checkpointer) -> None:
    """Wait until everything is on disk, and read the newest checkpoint back.

    Raises CheckpointError if it could not be written, or cannot be read.
    """
    _wait(checkpointer)
    _require_readable(checkpointer)


def _wait(checkpointer: ocp.training.Checkpointer) -> None:
    try:
        checkpointer.wait()
    except Exception as error:
        raise CheckpointError(_unwritten(checkpointer.directory, error)) from error


def reads_back_once(checkpointer: ocp.training.Checkpointer) -> Callable[[], None]:
    """Return a function to call after every step, which reads the first checkpoint on disk back.

    It raises CheckpointError if that checkpoint cannot be read, before more training relies on it.
    It never waits for a save.
    """
    pending = True

    def read_back() -> None:
        nonlocal pending
        if pending and checkpointer.checkpoints and not checkpointer.is_saving_in_progress():
            pending = False
            _require_readable(checkpointer)

    return read_back


def _require_readable(checkpointer: ocp.training.Checkpointer) -> None:
    """Raise CheckpointError on the first process if the newest checkpoint has no readable tree."""
    if jax.process_index() > 0 or not checkpointer.checkpoints:
        return
    step = checkpointer.checkpoints[-1].step
    problem = "it lists no arrays"
    try:
        if checkpointer.metadata(step).metadata:
            return
    except Exception as error:
        problem = _first_line(error)
    raise CheckpointError(
        f"{epath.Path(checkpointer.directory) / str(step)}: was written, but cannot be read back "
        f"({problem}); choose another directory for the run or for checkpoint.directory"
    )


def restore(
    checkpointer: ocp.training.Checkpointer, abstract: TrainState
) -> tuple[TrainState | None, list[str]]:
    """Return the newest readable checkpoint, or None if there are no checkpoints, and warnings.

    Newer checkpoints, which cannot be read, are moved to RUN/unreadable and never deleted. Raises
    CheckpointError for a checkpoint of another model, and if no checkpoint can be read; then none
    is moved.
    """
    directory = epath.Path(checkpointer.directory)
    unreadable: dict[int, str] = {}
    for step in sorted((c.step for c in checkpointer.checkpoints), reverse=True):
        _require_match(checkpointer, step, abstract.params, "params")
        try:
            state = _load_state(checkpointer, step, abstract)
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
            f"{reason}; they are left in place, choose another run directory to start over"
        )
    return None, []


def roll_back(
    checkpointer: ocp.training.Checkpointer, abstract: TrainState
) -> tuple[TrainState | None, str]:
    """Return the newest checkpoint from before a divergence, or None, and a note.

    Its mean loss is at most GOOD_FACTOR times the lowest mean loss until then. Newer checkpoints
    are moved to RUN/diverged. Raises CheckpointError if the save in progress cannot be written.
    """
    finish(checkpointer)
    newer = []
    for step in sorted((c.step for c in checkpointer.checkpoints), reverse=True):
        metadata = saved_metadata(checkpointer, step)
        if metadata["smoothed_loss"] <= GOOD_FACTOR * metadata["lowest_loss"]:
            state = _load_state(checkpointer, step, abstract)
            aside = _set_aside(checkpointer, newer, "diverged")
            moved = f"; checkpoints {newer} were moved to {aside}" if newer else ""
            return state, f"going back to step {step}{moved}"
        newer.append(step)
    return None, ""


def _set_aside(
    checkpointer: ocp.training.Checkpointer, steps: Iterable[int], folder: str
) -> epath.Path:
    """Move checkpoints to a folder next to the checkpoints' directory, and return the folder."""
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
    """Return the metadata that was saved with the checkpoint of this step."""
    metadata: PyTree = checkpointer.metadata(step).custom_metadata or {}
    return metadata


def _free_name(path: epath.Path) -> epath.Path:
    """Return the path, with the first free number appended if it exists."""
    names = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())


def measured_on_dev(checkpointer: ocp.training.Checkpointer) -> dict[int, float]:
    """Return the figures on dev by step, of checkpoints that were saved with one."""
    return {c.step: _only(c.metrics) for c in checkpointer.checkpoints if c.metrics}


def _only(metrics: PyTree) -> float:
    (value,) = metrics.values()
    return value


def load_averaged(
    run: Path, which: str, abstract_params: PyTree, config: CheckpointConfig
) -> tuple[PyTree, str]:
    """Return the averaged parameters of the run's checkpoint `which`, and its name with steps.

    `which` is "best" by the figure on dev (the newest if none was measured), "last", a step, or
    "average:N", the mean over the newest N checkpoints.
    """
    directory = _directory(run, config)
    if not directory.is_dir():
        raise CheckpointError(f"{directory.parent}: holds no checkpoints yet")
    with ocp.training.Checkpointer(directory) as checkpointer:
        steps = _choose(checkpointer, which)
        loaded = [_load_averaged(checkpointer, step, abstract_params) for step in steps]
        mean = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *loaded)
        try:
            frozen = read_frozen_parameters(_folder(checkpointer), abstract_params)
        except Exception as error:
            path = _folder(checkpointer) / FROZEN
            raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error
        mean = joined(mean, frozen)
    return mean, f"{which} ({', '.join(map(str, steps))})"


def _directory(run: Path, config: CheckpointConfig) -> epath.Path:
    # gcsfs also logs every error that it raises, with a traceback.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    named = f"checkpoint.directory = {config.directory!r}"
    try:
        directory = epath.Path(config.directory or run.absolute()) / "checkpoints"
        directory.exists()
        return _storable(directory, named if config.directory else f"run directory {run}")
    except CheckpointError:
        raise
    except KeyError:  # raised by epath for an unknown scheme such as gopher://
        raise CheckpointError(
            f"{named}: must be a folder, or an address such as gs://BUCKET/RUN or s3://BUCKET/RUN"
        ) from None
    except ImportError as error:
        raise CheckpointError(
            f"{named}: needs a package, pip install gcsfs for gs://, s3fs for s3:// "
            f"({_first_line(error)})"
        ) from error
    except Exception as error:  # no permission for a bucket, or no connection to it
        raise CheckpointError(f"{named}: {_first_line(error)}") from error


def _storable(directory: epath.Path, named: str) -> epath.Path:
    """Return a path that Orbax takes literally; raise CheckpointError if it would take another."""
    name = str(directory)
    if "://" in name:
        if _PATTERN_CHARACTERS & set(name):
            raise CheckpointError(f"{named}: an address must not contain any of * ? [ ]")
        return directory
    # TensorStore, which writes the arrays, reads a backslash as a slash and takes UTF-8 only.
    if "\\" in name or name.encode(errors="ignore").decode() != name:
        raise CheckpointError(
            f"{named}: the path of checkpoints must be UTF-8 and contain no backslash, "
            f"and is {name!r}"
        )
    return _LiteralPath(name)


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
    """Return the averaged parameters that the checkpoint itself holds."""
    _require_match(checkpointer, step, abstract_params, "averaged")
    try:
        saved = checkpointer.metadata(step).metadata
        abstract = {
            name: jax.tree.map(lambda _: ocp.PLACEHOLDER, saved[name])
            for name in TrainState._fields
        }
        folder = _folder(checkpointer)
        abstract["averaged"] = without(abstract_params, frozen_paths(folder))
        return checkpointer.load(step, abstract)["averaged"]
    except Exception as error:
        path = epath.Path(checkpointer.directory) / str(step)
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error


def _require_match(
    checkpointer: ocp.training.Checkpointer, step: int, abstract_params: PyTree, name: str
) -> None:
    """Raise CheckpointError if the saved parameters have other names or shapes.

    This is checked before loading, since a failed load leaves objects that print errors later.
    """
    try:
        saved = checkpointer.metadata(step).metadata[name]
        expected = _shapes(without(abstract_params, frozen_paths(_folder(checkpointer))))
    except Exception:
        return  # a damaged checkpoint: loading it raises the error
    saved = _shapes(saved)
    for path in sorted(saved.keys() | expected.keys()):
        if saved.get(path) != expected.get(path):
            checkpoint = epath.Path(checkpointer.directory) / str(step)
            raise CheckpointError(
                f"{checkpoint} does not fit the config's model: {path} is "
                f"{saved.get(path, 'missing')}, expected {expected.get(path, 'none')}"
            )


def _shapes(params: PyTree) -> dict[str, tuple[int, ...]]:
    return {
        "/".join(str(part.key) for part in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def _unwritten(directory: PathLike[str], error: Exception) -> str:
    """Return the message for a failed save, and silence what Python reports about its remains."""
    previous_hook = sys.unraisablehook

    def report(unraisable) -> None:  # the argument's type has no name at run time
        # Python reports this when it collects the writers that Orbax abandons.
        if "Event loop is closed" not in str(unraisable.exc_value):
            previous_hook(unraisable)

    sys.unraisablehook = report
    # Python warns about writers that had not started, sometimes after our last line.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    reason = _first_line(error)
    return f"{directory}: a checkpoint could not be written ({reason}); earlier ones are kept"


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first.partition(" [source locations")[0][:400]
