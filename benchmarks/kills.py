"""Start a tiny training run and kill it (SIGKILL) at random moments, many times.

    python benchmarks/kills.py --kills 1000 --output kills.json

A killed run that reaches its end is compared, bit for bit, with a run that was never killed. Then
the next run starts, until the number of kills is reached. Results are in docs/reliability.md. Stops
at the first failure: a checkpoint that cannot be read, more lost steps than since the save before
the last, or a different final state.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

ROOT = Path(__file__).parents[1]
STEPS, SAVE_EVERY_STEPS = 200, 2
CONFIG = f"""
from asr_jax.config import *

config = Config(
    data=DataConfig(train="{ROOT}/samples/an4/dev", bucket_seconds=(4.0,), bucket_labels=(64,),
                    bucket_utterances=(4,)),
    augment=AugmentConfig(tempo_range=(0.9, 1.2), join_probability=0.2, frequency_mask_bins=8),
    tokenizer=TokenizerConfig(kind="char"),
    encoder=EncoderConfig(layers=1, width=16, attention="rotary", heads=2, kernel_frames=3,
                          subsampling="conv1d", subsampling_channels=16, remat="none"),
    predictor=PredictorConfig(embedding_width=8, width=8),
    joint=JointConfig(width=8),
    train=TrainConfig(steps={STEPS}, log_every_steps=1),
    checkpoint=CheckpointConfig(every_steps={SAVE_EVERY_STEPS}, keep=2),
)
"""


def start(config: Path, run: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "asr_jax", "train", str(config), "--run", str(run)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def last_step(run: Path) -> int:
    """Return the last step in metrics.jsonl, ignoring an incomplete last line."""
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    steps = [json.loads(line)["step"] for line in lines if line.endswith("\n")]
    return max(steps, default=0)


def saved_step(run: Path) -> int:
    names = os.listdir(run / "checkpoints") if (run / "checkpoints").is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def final_state(run: Path) -> Any:
    directory: Any = run / "checkpoints"
    with ocp.training.Checkpointer(directory) as checkpointer:
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding),
            checkpointer.metadata(STEPS).metadata,
        )
        return checkpointer.load(STEPS, abstract)


def require_same_bits(a: Any, b: Any) -> None:
    is_key = lambda x: jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
    bits = lambda x: jax.random.key_data(x) if is_key(x) else x
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(bits(x), bits(y)), a, b)


def kill_once(process: subprocess.Popen[str], run: Path, draw: random.Random) -> str | None:
    """Kill the process at a random moment and return the phase, or None if it ended before.

    A quarter of the kills are uniform over the first seconds, while it starts. The others follow
    the first step that it takes.
    """
    began, before = time.monotonic(), last_step(run)
    if draw.random() < 0.25:
        wait_until = began + draw.uniform(0, 8)
    else:
        while process.poll() is None and last_step(run) <= before:
            time.sleep(0.01)
        wait_until = time.monotonic() + draw.expovariate(1 / 0.6)
    while process.poll() is None and time.monotonic() < wait_until:
        time.sleep(0.001)
    phase = "taking steps" if last_step(run) != before else "starting"
    process.kill()
    return phase if process.wait() == -signal.SIGKILL else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    phases: Counter[str] = Counter()
    ended = most_lost = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "tiny.py"
        config.write_text(CONFIG)
        uninterrupted = Path(folder) / "never-killed"
        _, messages = (process := start(config, uninterrupted)).communicate()
        if process.returncode:
            sys.exit(messages)
        expected = final_state(uninterrupted)

        run = Path(folder) / "killed-0"
        while phases.total() < options.kills:
            reached, saved = last_step(run), saved_step(run)
            lost = reached - saved
            most_lost = max(most_lost, lost)
            if lost > 2 * SAVE_EVERY_STEPS:
                sys.exit(f"{run}: step {reached} was taken, but only step {saved} is saved")
            process = start(config, run)
            phase = kill_once(process, run, draw)
            messages = process.stderr.read() if process.stderr else ""
            if "cannot be read" in messages or "Traceback" in messages:
                sys.exit(f"after {phases.total()} kills: {messages}")
            if saved and phase == "taking steps" and f"from step {saved} of" not in messages:
                sys.exit(f"{run}: step {saved} is saved, but the run reported {messages}")
            if phase is not None:
                phases[phase] += 1
            elif process.returncode:
                sys.exit(messages)
            if last_step(run) == STEPS and saved_step(run) == STEPS:
                require_same_bits(final_state(run), expected)
                ended += 1
                run = Path(folder) / f"killed-{ended}"
            minutes = (time.monotonic() - began) / 60
            print(
                f"\r{phases.total()} kills {dict(phases)}, {ended} runs ended bit-identical to the "
                f"run never killed, {minutes:.0f} minutes",
                end="",
                file=sys.stderr,
                flush=True,
            )
    result = {
        "kills": phases.total(),
        "kills_by_phase": dict(phases),
        "runs_ended_equal_bit_for_bit": ended,
        "unreadable_checkpoints": 0,
        "most_steps_not_saved_at_a_kill": most_lost,
        "save_every_steps": SAVE_EVERY_STEPS,
        "steps": STEPS,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "jax": jax.__version__,
    }
    print("\n" + json.dumps(result, indent=1))
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
