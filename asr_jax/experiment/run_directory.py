"""The directory of a run: who may go on with it, and with what changed."""

import json
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

import jax

from asr_jax.config import Config, flatten
from asr_jax.config_file import load_config, write_config
from asr_jax.distributed.processes import all_gather_text, first_process
from asr_jax.errors import UsageError
from asr_jax.training.checkpoint import Metadata

# Fields that a run may go on with changed: none of them touches what has been learned so far.
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
    "train.log_every_steps",
    "train.evaluate_every_steps",
    "train.max_skipped",
    "train.divergence",
    "train.rollbacks",
    "train.wandb_project",
)
# Like data.train they may have moved; what is in them, fingerprinted, had better be the same.
CHANGEABLE_FOLDERS = ("augment.noise", "augment.impulse_responses")


@first_process
def claim_run(run: Path, config: Config) -> None:
    """Makes the run directory, or checks that the one there is of this config."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "config.json"
    if not path.exists():
        # Of a start that failed before it became a run.
        if not all(file.suffix == ".tmp" or file.name == "labels.npz" for file in run.iterdir()):
            raise UsageError(f"--run {run}: holds other files and no config.json; choose another")
        return
    _require_same(flatten(load_config(path)), flatten(config), run)


@first_process
def keep_config(run: Path, config: Config) -> None:
    """Writes the config that the run goes on with to RUN/config.json."""
    write_config(config, run / "config.json")


def require_shared(run: Path) -> None:
    """Raises ValueError on all processes where one does not see what the first writes in `run`."""
    if jax.process_count() == 1:
        return
    # A name that no file system remembers anything of.
    probe = run / f"{all_gather_text(secrets.token_hex(4))[0]}.tmp"
    first_process(probe.touch)()
    told = [
        json.loads(one)
        for one in all_gather_text(json.dumps([socket.gethostname(), probe.exists()]))
    ]
    first_process(probe.unlink)()
    for number, (host, sees) in enumerate(told):
        if not sees:
            raise ValueError(
                f"--run {run}: process {number} ({host}) does not see what process 0 "
                f"({told[0][0]}) writes there: must be a folder that all hosts share"
            )


def _require_same(before: Mapping[str, object], now: Mapping[str, object], run: Path) -> None:
    """Raises UsageError where a field differs that a run cannot go on with changed."""
    fixed = [
        name
        for name in now
        if now[name] != before.get(name, now[name])
        and not name.startswith(CHANGEABLE)
        and name not in CHANGEABLE_FOLDERS
    ]
    if fixed:
        name = fixed[0]
        raise UsageError(
            f"--run {run}: holds another run, whose {name} is {before[name]!r}, not {now[name]!r}"
            f"{f' (and {len(fixed) - 1} more fields differ)' if len(fixed) > 1 else ''}; "
            "choose another directory"
        )


def changes(before: Metadata, now: Metadata, run: Path) -> list[str]:
    """What is not as it was when the checkpoint was saved; config.json may have been edited since.

    Raises UsageError where the run cannot go on so.
    """
    _require_same(before.get("config", {}), now["config"], run)
    if before.get("utterances", now["utterances"]) == now["utterances"]:
        return []
    return [
        "the utterances of data.train are not those that this run was trained on so far; "
        "the current epoch goes on with other batches"
    ]


def run_metadata(config: Config, utterances: str) -> Metadata:
    """What is kept beside a checkpoint for `changes`: config, and fingerprint of the utterances."""
    # Tuples as lists, as they come back from a file.
    return {"config": json.loads(json.dumps(flatten(config))), "utterances": utterances}
