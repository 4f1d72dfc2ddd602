"""Writes docs/fit.md: what the LibriSpeech configs take on accelerators, by `asr-jax fit`:

    python benchmarks/fit_tables.py RESULTS [TARGET ...] [--configs CONFIG ...]

RESULTS is a folder for the figures, a JSON file for each config and target; what it holds already
is not compiled again. Needs the targets' compilers (`asr-jax fit` says which packages).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax

from asr_jax.commands.fit import table
from asr_jax.training.collectives import Collective
from asr_jax.training.fit import BucketFit

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = [f"librispeech_{hours}h_{size}" for hours in (960, 100) for size in "lms"]
PAGE = """# What fits

What a training step takes on accelerators that it was compiled for, not run on: by `asr-jax fit
configs/NAME.py --target TARGET`, written here by `python benchmarks/fit_tables.py` (JAX {version}).
Memory is the compiler's account, of one device, in GB (10^9 bytes); a GPU's limit is the three
quarters of its memory that JAX takes unless `XLA_PYTHON_CLIENT_MEM_FRACTION` says otherwise.
Parameters: with their average. Activations: what the forward keeps for the backward pass, traced, a
part of the temporaries. TFLOP: of the model, padding included, recomputation not, of one device.
Sent: results of collectives. **The least time is an estimate**: the longest of computing (with
recomputation) and sending at published peak rates, and reading and writing state and activations
once each. No real step reaches it; none was measured.

Other batches, meshes and devices: `asr-jax fit CONFIG --target h200-8 --mesh.fsdp 8`; `--largest`
searches the largest batches that fit, and prints them as `--data.bucket-utterances ...`.

What it has shown so far: for eight v5e with `--mesh.fsdp 8` the TPU compiler of JAX 0.12.0 aborts
(`Check failed: !UseNamedShardingLeaf()`) at many shapes. It compiles with `--mesh.fsdp` 2 or 4,
and with `JAX_USE_SHARDY_PARTITIONER=0` in the environment. And splitting over `mesh.fsdp` sends
far more than parameters and gradients: Conformer-S, 496 utterances of 6 s on eight H200, 12.5 GB
a device and step, of which 8.4 GB all-reduces, where copies of the model (`mesh.data`) send 0.04
GB. The configs below fit as copies.
"""


def compile_buckets(config: str, target: str, result: Path) -> None:
    """In a process of its own: libtpu wants to be alone."""
    began = time.monotonic()
    command = [sys.executable, "-m", "asr_jax", "fit", f"configs/{config}.py", "--json"]
    done = subprocess.run(
        [*command, "--target", target],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result.write_text(done.stdout)
    print(f"{config} for {target}: {time.monotonic() - began:.0f} s", flush=True)


def read_buckets(result: Path) -> list[BucketFit]:
    found = []
    for bucket in json.loads(result.read_text()):
        sent = {kind: Collective(**amount) for kind, amount in bucket.pop("collectives").items()}
        found.append(BucketFit(**bucket, collectives=sent))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--configs", nargs="*", default=CONFIGS)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    for target in options.targets:
        for config in options.configs:
            result = options.results / f"{config}.{target}.json"
            if not result.exists():
                compile_buckets(config, target, result)
    page = PAGE.format(version=jax.__version__)
    for config in CONFIGS:
        page += f"\n## configs/{config}.py\n"
        for result in sorted(options.results.glob(f"{config}.*.json")):
            found, target = read_buckets(result), result.name.split(".")[1]
            limit = f"{found[0].limit_bytes / 1e9:.1f} GB"
            page += f"\n{target}, of which a program may take {limit}:\n\n{table(found)}\n"
    (ROOT / "docs/fit.md").write_text(page)


if __name__ == "__main__":
    main()
