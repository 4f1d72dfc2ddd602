"""Time and memory of a training step on this machine's devices, and the time of its parts.

    python benchmarks/train_step.py [CONFIG ...] [--repeats N] [--rows N] [--split BUCKET ...]
        [--peak-tflops X] [--output FILE] [--FIELD VALUE ...]

The default CONFIGs are Conformer-S, M and L, configs/librispeech_960h_*.py. For every bucket, with
batches of noise of realistic lengths: the median time of the compiled training step, memory, the
operations of the model (capacity/flops.py: of real frames and cells, without recomputation), their
rate, the fraction of the device's peak, and seconds of audio per second. Rates are per device. For
the buckets of --split, also the parts of the step, each compiled separately.

The time of waiting for data is not included; see `data_wait_fraction` in a run's metrics.jsonl.
"""

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from asr_jax.capacity.flops import model_flops
from asr_jax.commands.arguments import override
from asr_jax.config import Config
from asr_jax.config_file import load_config
from asr_jax.data.buckets import Buckets
from asr_jax.distributed.devices import prepare_devices
from asr_jax.distributed.mesh import batch_sharding, make_mesh
from asr_jax.errors import UsageError
from asr_jax.experiment.batch_shapes import batch_shapes
from asr_jax.models.composition import split_model
from asr_jax.training.loop import compile_steps
from asr_jax.training.objective import loss_weights, losses_of_encoded
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import TrainState, abstract_state, initial_state
from asr_jax.training.step import augmented_features, cast
from asr_jax.types import Batch

# The shapes of batches where a config leaves their choice to the recordings: those of docs/fit.md.
LIBRISPEECH = Buckets(
    seconds=(6.0, 10.0, 13.0, 15.0, 17.0, 20.0),
    labels=(40, 56, 72, 80, 88, 112),
    utterances=(496, 304, 232, 200, 176, 152),
)
DEFAULT_CONFIGS = [f"configs/librispeech_960h_{size}.py" for size in "sml"]
# Published dense bfloat16 TFLOP/s by a part of the device's name; the first match counts.
PEAK_TFLOPS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L4": 121,
    "TPU v6 lite": 918,
    "TPU v5 lite": 197,
    "TPU v5": 459,
    "TPU v4": 275,
}


def parse(arguments: list[str]) -> tuple[list[str], argparse.Namespace, list[str]]:
    """Return config files, this script's options, and overrides of config fields."""
    configs = list(itertools.takewhile(lambda a: not a.startswith("-"), arguments))
    parser = argparse.ArgumentParser(
        usage=str(__doc__), formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--repeats", type=int, default=15, help="timed steps, of which the median counts"
    )
    parser.add_argument("--rows", type=int, help="limit of utterances per batch")
    parser.add_argument(
        "--split", type=int, nargs="*", help="buckets, from 1 (default: the middle one)"
    )
    parser.add_argument("--peak-tflops", type=float, help="peak of a device that the table lacks")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options, overrides = parser.parse_known_args(arguments[len(configs) :])
    return configs or DEFAULT_CONFIGS, options, overrides


def peak_tflops(config: Config, given: float | None) -> float | None:
    """Return the peak of one device; the table is for bfloat16 only."""
    kind = jax.devices()[0].device_kind
    listed = next((peak for name, peak in PEAK_TFLOPS.items() if name in kind), None)
    return given or (listed if config.train.compute_dtype == "bfloat16" else None)


def fabricated_batch(shape: Batch, edges: tuple[float, float], rate_hz: int, symbols: int) -> Batch:
    """Draw noise of lengths uniform between the edges, with three quarters of the labels."""
    random = np.random.default_rng(0)
    rows, samples = shape.samples.shape
    most, longest = shape.labels.shape[1], edges[1]
    seconds = random.uniform(max(edges[0], longest / 4), longest, rows)
    lengths = (seconds * rate_hz).astype(np.int32)
    label_rates = random.normal(0.75, 0.1, rows) * most / longest
    real = np.arange(samples) < lengths[:, None]
    return Batch(
        samples=np.where(real, random.normal(scale=0.1, size=real.shape), 0).astype(np.float32),
        sample_lengths=lengths,
        labels=random.integers(2, symbols, (rows, most)).astype(np.int32),
        label_lengths=np.clip(label_rates * seconds, 1, most).astype(np.int32),
        tempo=np.ones(rows, np.float32),
        utterances=np.arange(rows, dtype=np.int32),
        second_utterance=np.full(rows, -1, np.int32),
    )


def milliseconds(call: Any, repeats: int) -> float:
    """Return the median time of synchronized calls, after two that do not count."""
    times = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[2:])


def measured(function: Any, *arguments: Any, repeats: int) -> float:
    return milliseconds(functools.partial(jax.jit(function), *arguments), repeats)


def split(
    config: Config,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    mesh: Mesh,
    repeats: int,
) -> dict[str, float]:
    """Return milliseconds of the step's parts, each compiled separately with its gradients."""
    time_of = functools.partial(measured, repeats=repeats)
    key, dtype = jax.random.key(0), config.train.compute_dtype
    host_batch = jax.device_get(batch)
    featurize = lambda batch: augmented_features(batch, key, config=config, mesh=mesh)
    features, lengths = jax.jit(featurize)(batch)
    model_of = lambda params: nnx.merge(graphdef, cast(params, dtype))

    def encode(params: Any, features: Any, lengths: Any) -> Any:
        return model_of(params).encoder(features.astype(dtype), lengths, key=key)

    def lose(params: Any, encoded: Any, *target: Any) -> jax.Array:
        losses = losses_of_encoded(model_of(params), encoded, *target, config=config, key=key)
        weights = loss_weights(config)
        return sum((weights[name] * jnp.sum(losses[name]) for name in weights), jnp.float32(0))

    def update(gradients: Any, state: TrainState) -> Any:
        updates, moments = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return params, moments, optax.incremental_update(params, state.averaged, 0.001)

    squares = lambda x: jnp.sum(jnp.square(x.astype(jnp.float32)))
    encoded, frames = jax.jit(encode)(state.params, features, lengths)
    encoder_loss = lambda *arguments: squares(encode(*arguments)[0])
    put = functools.partial(jax.device_put, host_batch, batch_sharding(mesh))
    losing = state.params, encoded, frames, batch.labels, batch.label_lengths
    return {
        "batch to the devices": milliseconds(put, repeats),
        "features, augmentation": time_of(featurize, batch),
        "encoder, forward": time_of(encode, state.params, features, lengths),
        "encoder": time_of(jax.grad(encoder_loss), state.params, features, lengths),
        "predictor, joint, losses": time_of(jax.grad(lose, (0, 1)), *losing),
        "optimizer": time_of(update, state.params, state),
    }


def benchmark(config: Config, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every bucket, printing its figures."""
    mesh = make_mesh(config.mesh, jax.devices())
    symbols = 29 if config.tokenizer.kind == "char" else config.tokenizer.vocabulary_size
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    graphdef, _ = split_model(config, symbols)
    abstract = abstract_state(config, symbols, optimizer, mesh)
    buckets = Buckets.of(config.data) or LIBRISPEECH
    shapes = [at_most(options.rows, shape) for shape in batch_shapes(config, buckets)]
    chosen = [(len(shapes) + 1) // 2] if options.split is None else options.split
    if not set(chosen) <= set(range(1, len(shapes) + 1)):
        raise UsageError(f"--split {chosen}: buckets are 1 to {len(shapes)}")
    if chosen and {"intermediate_ctc_loss", "consistency_loss"} & loss_weights(config).keys():
        raise UsageError(
            "--split: does not support intermediate CTC or two views; pass --split without buckets"
        )
    note = lambda text: print(text, file=sys.stderr, flush=True)
    steps = compile_steps(config, graphdef, optimizer, abstract, mesh, shapes, note=note)
    begin = lambda: initial_state(config, symbols, optimizer, mesh)
    state, measured = begin(), []
    print_row("bucket", "ms/step", "GB", "TFLOP", "TFLOP/s", "of peak", "audio s/s", "padding")
    edges = itertools.pairwise((0.0, *buckets.seconds))
    rate_hz = config.features.sample_rate_hz
    for number, (shape, (low, high)) in enumerate(zip(shapes, edges), 1):
        batch = fabricated_batch(shape, (low, high), rate_hz, symbols)
        compiled: Any = steps.compiled[*batch.samples.shape, batch.labels.shape[1]]
        seconds = batch.sample_lengths / rate_hz
        rows, memory = len(seconds), compiled.memory_analysis()
        flops = model_flops(config, symbols, rows=rows, seconds=seconds, labels=batch.label_lengths)
        figures: dict[str, Any] = {
            "rows": rows,
            "bucket_seconds": high,
            "audio_seconds": float(seconds.sum()),
            "padding": 1 - float(seconds.mean()) / high,
            "model_flops": flops,
            "memory_gb": (
                memory.argument_size_in_bytes
                + memory.output_size_in_bytes
                + memory.temp_size_in_bytes
                - memory.alias_size_in_bytes
            )
            / 1e9,
        }
        on_device = jax.device_put(batch, batch_sharding(mesh))

        def step(compiled: Any = compiled, on_device: Any = on_device) -> Any:
            nonlocal state
            state, metrics = compiled(state, on_device)
            return state, metrics

        try:
            figures["step_ms"] = milliseconds(step, options.repeats)
            figures |= rates(figures, mesh.size, peak_tflops(config, options.peak_tflops))
            if number in chosen:
                parts = (config, graphdef, optimizer, state, on_device, mesh)
                figures["parts_ms"] = split(*parts, options.repeats)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            figures["not_run"] = "does not fit in the device's memory"
            state = begin()
        report(figures)
        measured.append(figures)
    return measured


def at_most(rows: int | None, shape: Batch) -> Batch:
    few = min(rows or sys.maxsize, shape.samples.shape[0])
    cut: Any = lambda x: jax.ShapeDtypeStruct((few, *x.shape[1:]), x.dtype)
    return jax.tree.map(cut, shape)


def rates(figures: dict[str, Any], devices: int, peak: float | None) -> dict[str, Any]:
    """Return the rates per device."""
    seconds = figures["step_ms"] / 1e3 * devices
    tflops = sum(figures["model_flops"].values()) / 1e12 / seconds
    return {
        "tflops_per_device": tflops,
        "utilisation": peak and tflops / peak,
        "audio_seconds_per_second_per_device": figures["audio_seconds"] / seconds,
    }


def report(figures: dict[str, Any]) -> None:
    size = f"{figures['rows']} x {figures['bucket_seconds']:g} s"
    if "not_run" in figures:
        return print_row(size, figures["not_run"], f"{figures['memory_gb']:.1f}")
    share = figures["utilisation"]
    print_row(
        size,
        f"{figures['step_ms']:.1f}",
        f"{figures['memory_gb']:.2f}",
        f"{sum(figures['model_flops'].values()) / 1e12:.3g}",
        f"{figures['tflops_per_device']:.3g}",
        "-" if share is None else f"{share:.1%}",
        f"{figures['audio_seconds_per_second_per_device']:.0f}",
        f"{figures['padding']:.0%}",
    )
    for name, value in figures.get("parts_ms", {}).items():
        print(f"    {name:24s}{value:10.1f} ms {value / figures['step_ms']:7.1%}")


def print_row(first: str, *others: str) -> None:
    print(f"{first:14s}" + "".join(f"{other:>11s}" for other in others), flush=True)


def main() -> None:
    paths, options, overrides = parse(sys.argv[1:])
    results = {}
    for path in paths:
        config = override(load_config(Path(path)), overrides)
        if not results:
            prepare_devices(config.mesh)
        device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        peak = peak_tflops(config, options.peak_tflops)
        print(
            f"\n{path}: {device}, JAX {jax.__version__}, {config.train.compute_dtype}, peak "
            + (f"{peak:g} TFLOP/s per device" if peak else "unknown (pass --peak-tflops)")
            + (f"; at most {options.rows} rows" if options.rows else "")
        )
        results[path] = {"device": device, "jax": jax.__version__, "peak_tflops": peak}
        results[path] |= {"buckets": benchmark(config, options)}
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    else:
        print(json.dumps(results))


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"train_step.py: {error}")
