"""Time and peak memory of joint, transducer loss and all gradients, compared with other libraries.

    python benchmarks/transducer_loss.py [SHAPE ...] [--implementations NAME ...] [--output FILE]
    python benchmarks/transducer_loss.py --compile-only

Every implementation runs in a separate process, and they take turns, so that noise affects all; ms
is the median of their runs. MB (10^6 bytes) include the inputs and gradients of the step:
"compiled" is the compiler's account of a JAX step (arguments + outputs + temporaries - aliases,
nothing donated), "measured" the growth of the process on a CPU, and the allocator's peak on a GPU.
The floor is 8 D V operations for each real cell, at the device's best speed in a matrix product
during the run. "off by" is the largest relative difference of an utterance's loss from the first
row. benchmarks/requirements.txt says how to install the other libraries; missing ones are not run.
"""

import argparse
import json
import multiprocessing
import operator
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from transducer_implementations import INEXACT, JAX, TORCH, NotRun, Problem
from transducer_worker import multiply, serve

PUBLIC = json.loads((Path(__file__).parent / "rnnt_bench_shapes.json").read_text())
SHAPES: dict[str, tuple[int, int, int, int, int, str]] = {
    # batch, frames, labels, vocabulary, width (0: the inputs are 4-D logits), dtype
    "small": (8, 128, 40, 512, 256, "float32"),
    "logits": (4, 200, 40, 129, 0, "float32"),
    "nemo": (32, 400, 128, 1024, 640, "bfloat16"),
    "b32": (32, 400, 100, 1024, 512, "bfloat16"),
    "large-vocabulary": (16, 188, 60, 8198, 640, "bfloat16"),
    "1024x40s": (1024, 1000, 200, 500, 512, "bfloat16"),
}
PUBLIC_SHAPES = {
    "public-unsorted": ("unsorted", "float32"),
    "public-sorted": ("sorted", "float32"),
    "public-unsorted-bf16": ("unsorted", "bfloat16"),
    "public-sorted-bf16": ("sorted", "bfloat16"),
}
COMPILED_ONLY = {"1024x40s"}


def problems(name: str, *, batches: int, ragged: bool) -> list[Problem]:
    """Return the batches of a shape; its row is their mean time and their largest memory."""
    if name in PUBLIC_SHAPES:
        mode, dtype = PUBLIC_SHAPES[name]
        window = PUBLIC["batches"][mode]
        chosen = [window[len(window) * i // batches] for i in range(batches)]
        sizes = PUBLIC["protocol"]["vocabulary"], PUBLIC["protocol"]["width"]
        return [Problem(tuple(map(tuple, batch)), *sizes, dtype) for batch in chosen]
    batch, frames, labels, vocabulary, width, dtype = SHAPES[name]
    lengths = np.tile((frames, labels), (batch, 1))
    if ragged:  # from half to full length; the first utterance stays
        lengths[1:] -= np.random.default_rng(0).integers(0, lengths[1:] // 2 + 1)
    return [Problem(tuple(map(tuple, lengths.tolist())), vocabulary, width, dtype)]


class Worker:
    """The process of one implementation."""

    def __init__(self, *arguments: Any, target: Any = serve):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            raise NotRun(f"its process died, exit code {self.process.exitcode}") from None

    def ask(self, message: Any = True) -> float:
        self.connection.send(message)
        return self.receive()

    def stop(self) -> None:
        if self.process.is_alive():
            self.connection.send(None)
        self.process.join()


def measure(
    problem: Problem, names: list[str], platform: str, product: Worker, options: Any
) -> tuple[dict[str, Any], float]:
    """Return each worker's report with the seconds of its runs, and operations per second."""
    results, workers = {}, {}
    speeds = [product.ask(problem.dtype) for _ in range(3)]
    for name in names:  # one at a time: XLA times kernels while it compiles
        worker = Worker(name, problem, platform, not options.compile_only)
        try:
            results[name] = worker.receive()
            if "not_run" in results[name] or options.compile_only:
                continue
            results[name]["seconds"] = []
            # The report included a first run; a second one follows, unless runs are slow.
            if worker.ask() < options.seconds / 10:
                worker.ask()
            workers[name] = worker
        except NotRun as reason:
            results[name] = {"not_run": str(reason)}
    for _ in range(options.runs if workers else 0):
        speeds.append(product.ask(problem.dtype))
        for name, worker in list(workers.items()):
            seconds = results[name]["seconds"]
            if sum(seconds) >= options.seconds:
                continue
            try:
                seconds.append(worker.ask())
            except NotRun as reason:
                results[name] = {"not_run": str(reason)}
                del workers[name]
    for worker in workers.values():
        worker.stop()
    return results, max(speeds)


def summarize(
    name: str, batches: list[Problem], results: list[dict], speeds: list[float]
) -> list[dict]:
    """Return a row for each implementation."""
    rows = []
    exact = [x for x in results[0] if x not in INEXACT and "losses" in results[0][x]]
    for implementation in results[0]:
        reports = [result[implementation] for result in results]
        row: dict[str, Any] = {"shape": name, "implementation": implementation}
        row["exact"] = implementation not in INEXACT
        rows.append(row)
        reasons = [x["not_run"] for x in reports if "not_run" in x]
        if reasons:
            row["not_run"] = reasons[0]
            continue
        for kind in ("compiled", "measured"):
            sizes = [x.get(f"{kind}_bytes") for x in reports]
            row[f"{kind}_mb"] = None if None in sizes else max(sizes) / 1e6
        if batches[0].width and row["exact"]:
            operations = [8 * x.width * x.vocabulary * x.cells for x in batches]
            row["floor_ms"] = 1e3 * statistics.mean(map(operator.truediv, operations, speeds))
        if "seconds" in reports[0]:
            row["runs"] = [len(x["seconds"]) for x in reports]
            row["ms"] = 1e3 * statistics.mean(statistics.median(x["seconds"]) for x in reports)
            row["best_ms"] = 1e3 * statistics.mean(min(x["seconds"]) for x in reports)
            row["share_of_floor"] = row["floor_ms"] / row["ms"] if "floor_ms" in row else None
        if exact and "losses" in reports[0]:
            off = lambda key: max(
                np.max(np.abs(np.divide(result[implementation][key], result[exact[0]][key]) - 1))
                for result in results
            )
            row["losses_off_by"] = float(off("losses"))
            row["gradient_norms_off_by"] = float(off("gradient_norms"))
    return rows


def table(name: str, batches: list[Problem], rows: list[dict]) -> str:
    """Return the rows as text, with a headline."""
    first = batches[0]
    size = lambda values: "/".join(map(str, dict.fromkeys(values)))
    real = sum(x.cells for x in batches) / sum(x.padded_cells for x in batches)
    lines = [
        f"\n{name}: B {size(len(x.lengths) for x in batches)}, "
        f"T {size(x.frames for x in batches)}, U {size(x.labels for x in batches)}, "
        f"V {first.vocabulary}, D {first.width}, {first.dtype}, {real:.0%} of the cells real",
        f"  {'':18s}{'ms':>10s}{'best ms':>10s}{'to first':>10s}"
        f"{'compiled MB':>13s}{'measured MB':>13s}{'floor ms':>10s}{'reached':>9s}{'off by':>10s}",
    ]
    base = next((row["ms"] for row in rows if "ms" in row), None)
    for row in rows:
        label = row["implementation"] + ("" if row["exact"] else " *")
        if "not_run" in row:
            lines.append(f"  {label:18s}  not run: {row['not_run']}")
            continue
        ms = row.get("ms")
        cells = (
            (ms, "10.2f"),
            (row.get("best_ms"), "10.2f"),
            (ms / base if ms and base else None, "10.2f"),
            (row["compiled_mb"], "13.1f"),
            (row["measured_mb"], "13.1f"),
            (row.get("floor_ms"), "10.2f"),
            (row.get("share_of_floor"), "9.1%"),
            (row.get("losses_off_by"), "10.0e"),
        )
        lines.append(
            f"  {label:18s}"
            + "".join(
                f"{'-':>{style.split('.')[0]}s}" if value is None else f"{value:{style}}"
                for value, style in cells
            )
        )
    if any(not row["exact"] for row in rows):
        lines.append("  * not exact: leaves out alignments")
    if name in PUBLIC_SHAPES:
        published = PUBLIC["published"]
        figures = published[PUBLIC_SHAPES[name][0]].items()
        lines.append(f"  published, float32, all 20 batches, {published['device']}:")
        lines += [f"  {who:22s}{ms:8.1f} ms {mb:9.1f} MB" for who, (ms, mb) in figures]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*SHAPES, *PUBLIC_SHAPES]
    parser.add_argument(
        "shapes", nargs="*", metavar="SHAPE", help=f"any of {', '.join(known)} (default: all)"
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        default=[*JAX, *TORCH],
        metavar="NAME",
        help=f"any of {', '.join([*JAX, *TORCH])}; ours=X is transducer_loss(implementation=X)",
    )
    parser.add_argument("--runs", type=int, default=15, help="runs per implementation and batch")
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="seconds after which an implementation is not run again",
    )
    parser.add_argument(
        "--batches", type=int, default=2, help="how many of the public benchmark's 20 batches"
    )
    parser.add_argument("--ragged", action="store_true", help="draw lengths from half to full")
    parser.add_argument(
        "--compile-only", action="store_true", help="report the memory of compiled JAX only"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    unknown = [x for x in options.shapes if x not in known]
    unknown += [x for x in options.implementations if x not in (*JAX, *TORCH) and x[:5] != "ours="]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")

    # Otherwise the first JAX process takes most of the GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # Otherwise torch's threads spin while they wait for each other; another job on the same cores
    # has slowed torch tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    product = Worker(target=multiply)
    device = product.receive()
    print(", ".join(f"{key} {value}" for key, value in device.items()))
    rows, wrong = [], []
    for name in options.shapes or known:
        compile_only = options.compile_only or name in COMPILED_ONLY
        names = [x for x in options.implementations if not (compile_only and x in TORCH)]
        batches = problems(name, batches=options.batches, ragged=options.ragged)
        settings = argparse.Namespace(**vars(options) | {"compile_only": compile_only})
        measured = [measure(x, names, device["platform"], product, settings) for x in batches]
        results, speeds = map(list, zip(*measured))
        summary = summarize(name, batches, results, speeds)
        print(table(name, batches, summary), flush=True)
        rows += summary
        if batches[0].dtype == "float32":
            compared = [row for row in summary if row["exact"] and "losses_off_by" in row]
            for row in compared:
                off = np.array([row["losses_off_by"], row["gradient_norms_off_by"]])
                if not np.all(off <= 1e-4):
                    wrong.append(f"{name}: {row['implementation']}")
    product.stop()
    if options.output:
        settings = {"runs": options.runs, "batches": options.batches, "ragged": options.ragged}
        result = {"device": device, "settings": settings, "rows": rows}
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if wrong:
        raise SystemExit(f"losses or gradients disagree: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
