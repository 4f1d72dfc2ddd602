"""Models of one family trained alike on AN4, for docs/benchmarks.md.

    python benchmarks/models.py RUNS [--only MODEL ...] [--seeds 0 1 2]
    python benchmarks/models.py RUNS --table

Each model is trained with each seed in RUNS/MODEL-SEED; stopped runs resume. The checkpoint with
the best WER on dev is evaluated, and RUNS/MODEL-SEED/figures.json is written. Several processes may
run at a time with different models or seeds. --table prints the results in RUNS: means over seeds
with 95 % intervals (Student's t), and core-minutes of runs trained without interruption. All seeds
share JAX's compiled programs in RUNS/compiled.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import jax

from asr_jax.config_file import load_config
from asr_jax.models.composition import split_model
from asr_jax.text import Tokenizer

RESIDUAL = "configs/an4_residual.py"
MODELS = {
    "unshared": (RESIDUAL, "--encoder.shared-layers 1 --encoder.residual-rank 0"),
    "K3-R16": (RESIDUAL, ""),
    "K6-R16": (RESIDUAL, "--encoder.shared-layers 6"),
}
# Student's t, two-sided 95 %, by the number of seeds.
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def megabytes(params) -> dict[str, float]:
    """Return the size of the parameters as float32, bfloat16 and int8.

    For int8, matrices, convolutions and embeddings have a float32 scale for every output channel,
    and all other parameters are float32.
    """
    matrices = ("kernel", "down", "up", "depthwise", "embedding")
    count = int8 = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        count += leaf.size
        is_matrix = path[-1].key in matrices
        # Stacked layers have scales of their own.
        stacked = len(leaf.shape) == 3 or path[-1].key == "depthwise"
        scales = leaf.shape[-1] * (leaf.shape[0] if stacked else 1)
        int8 += leaf.size + 4 * scales if is_matrix else 4 * leaf.size
    return {"float32": 4e-6 * count, "bfloat16": 2e-6 * count, "int8": 1e-6 * int8}


def train(runs: Path, model: str, seed: int) -> None:
    run = runs / f"{model}-{seed}"
    if (run / "figures.json").exists():
        return
    config, overrides = MODELS[model]
    is_new = not run.exists()
    command = f"train {config} --run {run} --train.seed {seed} {overrides}".split()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    asr_jax(runs, *command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = load_config(run / "config.json")
    asr_jax(runs, "evaluate", str(run), "--data", loaded.data.dev)
    wer = {
        name: json.loads((run / "evaluation" / f"an4-{name}" / "wer.json").read_text())["wer"]
        for name in ("dev", "test")
    }
    _, params = split_model(loaded, Tokenizer.load(run / "tokenizer.model").vocabulary_size)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = {
        "model": model,
        "seed": seed,
        "command": f"asr-jax {' '.join(command)}",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "encoder_parameters": sum(leaf.size for leaf in jax.tree.leaves(params["encoder"])),
        "megabytes": megabytes(params),
        "wer_percent": wer,
        # For a resumed run it would be the time of the remaining steps only.
        "core_minutes": seconds / 60 if is_new else None,
    }
    (run / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


def asr_jax(runs: Path, *arguments: str) -> None:
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(runs / "compiled")}
    subprocess.run([sys.executable, "-m", "asr_jax", *arguments], check=True, env=environment)


def print_table(runs: Path) -> None:
    found = [json.loads(path.read_text()) for path in sorted(runs.glob("*/figures.json"))]
    print("| model | parameters | MB float32 / bf16 / int8 | WER dev | WER test | core-minutes |")
    print("|---|---|---|---|---|---|")
    for model in MODELS:
        of_model = [one for one in found if one["model"] == model]
        if not of_model:
            continue
        size = of_model[0]["megabytes"]
        minutes = [one["core_minutes"] for one in of_model if one["core_minutes"] is not None]
        cells = [
            model,
            f"{of_model[0]['parameters'] / 1e3:.0f} k",
            " / ".join(f"{size[dtype]:.2f}" for dtype in ("float32", "bfloat16", "int8")),
            *(mean_and_interval([o["wer_percent"][name] for o in of_model]) for name in WER_OF),
            f"{statistics.mean(minutes):.1f}" if minutes else "",
        ]
        print(f"| {' | '.join(cells)} |")


WER_OF = ("dev", "test")


def mean_and_interval(values: list[float]) -> str:
    mean, each = statistics.mean(values), ", ".join(f"{value:.1f}" for value in values)
    if len(values) not in T_95:
        return f"{mean:.1f} ({each})"
    half = T_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.1f} ± {half:.1f} ({each})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        return print_table(arguments.runs)
    for seed in arguments.seeds:
        for model in arguments.only:
            train(arguments.runs, model, seed)


if __name__ == "__main__":
    main()
