"""The directory of a run: which config may use it, and which fields may change on resuming."""

import contextlib
import json
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax

from asr_jax.config import CheckpointConfig, Config, flatten
from asr_jax.config_file import load_config, write_config
from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.distributed.lease import LEASE, held
from asr_jax.distributed.processes import all_gather_text, first_process
from asr_jax.errors import UsageError
from asr_jax.inference.recognizer import EXPORTED
from asr_jax.training import checkpoint
from asr_jax.training.checkpoint import Metadata, has_checkpoints

# Fields that may change when a run resumes: none of them affects what was learned so far.
CHANGEABLE = (
    "checkpoint.every",
    "checkpoint.keep",
    "decoding.",
    "mesh.",
    "data.train",
    "data.more_train",
    "data.dev",
    "data.test",
    "data.read",
    "data.cache",
) + (
    "train.steps",
    "optimizer.decay_steps",
    "train.log_every_steps",
    "train.evaluate_every_steps",
    "train.max_skipped",
    "train.divergence",
    "train.rollbacks",
    "train.wandb_project",
)
# The fields by which buckets are stated or chosen.
OF_BUCKETS = ("data.bucket", "data.batch_seconds", "data.max_seconds")
# Like data.train, these folders may move. Their contents are part of the fingerprint.
CHANGEABLE_FOLDERS = ("augment.noise", "augment.impulse_responses")


def holds_results(run: Path, config: CheckpointConfig) -> bool:
    """Return whether a run directory holds more than starts that ended before a checkpoint.

    Until then its files, such as tokenizer.model and config.json, are not yet the run's: the next
    start replaces them.
    """
    results = (EXPORTED, "evaluation")
    return has_checkpoints(run, config) or any((run / name).exists() for name in results)


@contextlib.contextmanager
def held_run(run: Path, config: Config) -> Iterator[Callable[[], None]]:
    """Keep other starts out of the run directory, and out of the folder of its checkpoints.

    Yields a function that ends this process if another start has taken over; code calls it before
    it writes. Raises UsageError if the directory belongs to another config or to a start that is
    alive. Only the first process holds the leases.
    """
    # Before there is a lease, which a directory of something else must not get.
    claim_run(run, config)
    checkpoint.require_writable(run, config.checkpoint)
    require_held: list[Callable[[], None]] = []
    with contextlib.ExitStack() as leases:

        @first_process
        def hold() -> None:
            for name, folder in _folders(run, config.checkpoint.directory).items():
                require_held.append(leases.enter_context(held(folder, name=name)))

        hold()
        # A start that has ended in the meantime may have left another config.
        claim_run(run, config)

        def require_all() -> None:
            for require in require_held:
                require()

        yield require_all


def _folders(run: Path, checkpoints: str) -> dict[str, Path]:
    """Return the folders that training writes to, by their names in messages."""
    folders = {f"--run {run}": run}
    if "://" in checkpoints:
        print(
            f"warning: checkpoint.directory = {checkpoints}: two runs that store checkpoints there "
            "at the same time are not noticed",
            file=sys.stderr,
        )
    elif checkpoints and Path(checkpoints).resolve() != run.resolve():
        folders[f"checkpoint.directory = {checkpoints}"] = Path(checkpoints)
    return folders


@first_process
def claim_run(run: Path, config: Config) -> None:
    """Make the run directory, or raise UsageError if it holds results of another config."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "config.json"
    if not path.exists():
        # A start that failed leaves these files.
        remains = (LEASE, "labels.npz")
        if not all(file.suffix == ".tmp" or file.name in remains for file in run.iterdir()):
            raise UsageError(f"--run {run}: holds other files and no config.json; choose another")
        return
    before = load_config(path)
    if holds_results(run, before.checkpoint):
        _require_same(flatten(before), flatten(config), run)


@first_process
def keep_new_config(run: Path, config: Config) -> None:
    """Write the config.json of a run without checkpoints."""
    if not has_checkpoints(run, config.checkpoint):
        write_config(config, run / "config.json")


@first_process
def keep_config(run: Path, config: Config) -> None:
    """Write RUN/config.json."""
    write_config(config, run / "config.json")


def require_shared(run: Path) -> None:
    """Raise ValueError on all processes if one does not see what the first writes to `run`."""
    if jax.process_count() == 1:
        return
    # A new name, which no network file system has cached.
    probe = run / f"{all_gather_text(secrets.token_hex(4))[0]}.tmp"
    first_process(probe.touch)()
    reports = list(
        map(json.loads, all_gather_text(json.dumps([socket.gethostname(), probe.exists()])))
    )
    first_process(probe.unlink)()
    for number, (host, sees) in enumerate(reports):
        if not sees:
            raise ValueError(
                f"--run {run}: process {number} ({host}) does not see what process 0 "
                f"({reports[0][0]}) writes there: must be a folder that all hosts share"
            )


def _require_same(before: Mapping[str, object], now: Mapping[str, object], run: Path) -> None:
    """Raise UsageError if a field differs that must not change when a run resumes.

    A run whose config stated the buckets keeps them if the config does not state them any more. A
    run keeps its kind of tokenizer if the config leaves it open, and the normalization of a
    tokenizer.model that it was given.
    """
    keeps_buckets = before.get("data.bucket_seconds") and not now["data.bucket_seconds"]
    changeable = CHANGEABLE + OF_BUCKETS * bool(keeps_buckets)
    changeable += ("tokenizer.kind", "tokenizer.vocab") * (now["tokenizer.kind"] == "auto")
    changeable += ("tokenizer.normalization",) * bool(now["tokenizer.model"])
    fixed = [
        name
        for name in now
        if now[name] != before.get(name, now[name])
        and not name.startswith(changeable)
        and name not in CHANGEABLE_FOLDERS
    ]
    if fixed:
        name = "data.bucket_seconds" if "data.bucket_seconds" in fixed else fixed[0]
        raise UsageError(
            f"--run {run}: holds another run, whose {name} is {before[name]!r}, not {now[name]!r}"
            f"{f' (and {len(fixed) - 1} more fields differ)' if len(fixed) > 1 else ''}; "
            "choose another directory"
        )


def changes(before: Metadata, now: Metadata, corpus: Corpus, run: Path) -> list[str]:
    """Return warnings about what changed since the checkpoint was saved. `corpus` is that of now.

    Raises UsageError if the run cannot resume with the changes. config.json may have been edited.
    """
    _require_same(before.get("config", {}), now["config"], run)
    saved = before.get("utterances", now["utterances"])
    if saved == now["utterances"] or saved == corpus.fingerprint_with_ids():
        return []
    return [
        "the utterances of data.train are not those that this run was trained on so far; "
        "the current epoch continues with other batches"
    ]


def run_metadata(config: Config, corpus: Corpus, buckets: Buckets) -> Metadata:
    """Return what is saved with a checkpoint: config, fingerprint of the utterances, buckets."""
    utterances = corpus.fingerprint(joins=config.augment.join_probability > 0)
    # Tuples become lists, as when they are read from a file.
    return {
        "config": json.loads(json.dumps(flatten(config))),
        "utterances": utterances,
        "buckets": json.loads(json.dumps(buckets)),
    }
