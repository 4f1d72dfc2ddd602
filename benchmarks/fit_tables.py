"""Write the tables of docs/fit.md: what configs take, by `asr-jax fit`.

    python benchmarks/fit_tables.py RESULTS [TARGET ...] [--configs CONFIG ...]

RESULTS is a folder of figures, one JSON file for each config and target. Files that exist are not
compiled again. Configs are those that the page has tables of, unless given; tables without results
stay as they are. Needs the targets' compilers (`asr-jax fit` names the packages).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from asr_jax.capacity.bucket_memory import BucketFit
from asr_jax.capacity.collectives import Collective
from asr_jax.commands.fit import table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/fit.md"
# Batches of 3000 s. From 11 to 16 s, where half of LibriSpeech's recordings are, edges are close.
BUCKETS = (
    "--data.bucket-seconds 6 10 13 15 17 20 --data.bucket-labels 40 56 72 80 88 112 "
    "--data.bucket-utterances 496 304 232 200 176 152"
)


def compile_buckets(config: str, target: str, result: Path) -> None:
    """Compile in a separate process: libtpu serves one process at a time."""
    began = time.monotonic()
    command = [sys.executable, "-m", "asr_jax", "fit", f"configs/{config}.py", "--json"]
    done = subprocess.run(
        [*command, *BUCKETS.split(), "--target", target],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result.write_text(done.stdout)
    print(f"{config} for {target}: {time.monotonic() - began:.0f} s", flush=True)


def read_buckets(result: Path) -> list[BucketFit]:
    buckets = []
    for bucket in json.loads(result.read_text()):
        sent = {kind: Collective(**amount) for kind, amount in bucket.pop("collectives").items()}
        buckets.append(BucketFit(**bucket, collectives=sent))
    return buckets


def main() -> None:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("targets", nargs="*")
    text, *kept = PAGE.read_text().split("\n## configs/")
    sections = {section.partition(".py\n")[0]: section.rstrip("\n") for section in kept}
    parser.add_argument("--configs", nargs="*", default=sorted(sections))
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    for target in options.targets:
        for config in options.configs:
            result = options.results / f"{config}.{target}.json"
            if not result.exists():
                compile_buckets(config, target, result)
    for config in options.configs:
        results = sorted(options.results.glob(f"{config}.*.json"))
        tables = [f"{config}.py"]
        for result in results:
            buckets, target = read_buckets(result), result.name.split(".")[1]
            limit = f"{buckets[0].limit_bytes / 1e9:.1f} GB"
            tables.append(f"{target}, {limit} available to a program:\n\n{table(buckets)}")
        if results:
            sections[config] = "\n\n".join(tables)
    written = [text.rstrip("\n"), *(f"## configs/{sections[name]}" for name in sorted(sections))]
    PAGE.write_text("\n\n".join(written) + "\n")


if __name__ == "__main__":
    main()
