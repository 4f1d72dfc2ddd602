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

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = [f"librispeech_{hours}h_{size}" for hours in (960, 100) for size in "lms"]
PAGE = """# What fits

What a training step takes on accelerators that it was compiled for, not run on: by `asr-jax fit
configs/NAME.py --target TARGET`, written here by `python benchmarks/fit_tables.py` (JAX
{version}). Memory is the compiler's account, of one device, in GB (10^9 bytes); a GPU's limit is
the three quarters of its memory that JAX takes unless `XLA_PYTHON_CLIENT_MEM_FRACTION` says
otherwise. State: parameters, their average and the optimizer's moments. Activations: what the
forward keeps for the backward pass, traced, a part of the temporaries. TFLOP: of the model,
padding included, recomputation not, of one device. Sent: results of collectives. **The least time
is an estimate**: the larger of computing (with recomputation) and sending at published peak
rates, and reading and writing state and activations once each. No real step reaches it; none was
measured.

Other batches, meshes and devices: `asr-jax fit CONFIG --target v5e-256 --mesh.fsdp 8`; `--largest`
searches the largest batches that fit, and prints them as `--data.bucket-utterances ...`.
"""
COLUMNS = (
    "seconds labels utterances state activations temporaries memory fits TFLOP sent least-time"
)
HEADER = f"\n| {COLUMNS.replace(' ', ' | ')} |\n{'|--:' * len(COLUMNS.split())}|\n"


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


def row(bucket: dict) -> str:
    gigabytes = lambda count: "?" if count is None else f"{count / 1e9:.2f}"
    sent = ", ".join(
        f"{amount['count']} {kind} {gigabytes(amount['bytes'])}"
        for kind, amount in bucket["collectives"].items()
    )
    cells = [
        f"{bucket['seconds']:g}",
        str(bucket["labels"]),
        str(bucket["utterances"]),
        gigabytes(bucket["parameters_bytes"] + bucket["optimizer_bytes"]),
        gigabytes(bucket["activations_bytes"]),
        gigabytes(bucket["temporary_bytes"]),
        gigabytes(bucket["memory_bytes"]),
        "yes" if bucket["fits"] else "**no**",
        f"{bucket['model_flops'] / 1e12:.1f}",
        sent or "nothing",
        f"{1e3 * bucket['least_step_seconds']:.0f} ms",
    ]
    return f"| {' | '.join(cells)} |\n"


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
    version = subprocess.check_output(
        [sys.executable, "-c", "import jax; print(jax.__version__)"], text=True
    ).strip()
    page = PAGE.format(version=version)
    for config in CONFIGS:
        page += f"\n## configs/{config}.py\n"
        for result in sorted(options.results.glob(f"{config}.*.json")):
            buckets = json.loads(result.read_text())
            target = result.name.split(".")[1]
            limit = buckets[0]["limit_bytes"] / 1e9
            page += f"\n{target}, of which a program may take {limit:.1f} GB:\n{HEADER}"
            page += "".join(map(row, buckets))
    (ROOT / "docs/fit.md").write_text(page)


if __name__ == "__main__":
    main()
