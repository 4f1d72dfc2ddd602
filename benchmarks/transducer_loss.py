"""Time and temporary memory of transducer_loss against joint and rnnt_loss, as ratios of one run.

    python benchmarks/transducer_loss.py [--shape B T U V D] [--runs N]

Both compute the losses and the gradients of encoded, predicted, kernel and bias. Prints one line of
JSON; a ratio above 1 says that transducer_loss is faster, or needs less. Runs take turns, and the
medians are compared, so that another job on the machine slows both alike.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp

from asr_jax.losses import transducer_loss


def problem(batch, frames, labels, vocabulary, width):
    keys = jax.random.split(jax.random.key(0), 5)
    normal = jax.random.normal
    floats = (
        normal(keys[0], (batch, frames, width)),
        normal(keys[1], (batch, labels + 1, width)),
        normal(keys[2], (width, vocabulary)) * width**-0.5,
        normal(keys[3], (vocabulary,)),
    )
    symbols = jax.random.randint(keys[4], (batch, labels), 1, vocabulary)
    return floats, (symbols, jnp.full(batch, frames), jnp.full(batch, labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shape = ("B", "T", "U", "V", "D")
    parser.add_argument("--shape", type=int, nargs=5, default=(8, 128, 40, 512, 256), metavar=shape)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    batch, frames, labels, vocabulary, width = arguments.shape
    floats, integers = problem(batch, frames, labels, vocabulary, width)

    def compiled(implementation):
        def total(encoded, predicted, kernel, bias):
            joint = encoded, predicted, kernel, bias
            return transducer_loss(*joint, *integers, implementation=implementation).sum()

        step = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3))).lower(*floats).compile()
        jax.block_until_ready(step(*floats))
        return step

    steps = {"plain": compiled("reference"), "chunked": compiled("xla")}
    seconds = {name: [] for name in steps}
    for _ in range(arguments.runs):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*floats))
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    analyses = {name: step.memory_analysis() for name, step in steps.items()}
    memory = {name: analysis.temp_size_in_bytes for name, analysis in analyses.items() if analysis}
    result = {
        "shape": dict(zip(shape, arguments.shape)),
        "device": jax.devices()[0].device_kind,
        "time_ratio": round(median["plain"] / median["chunked"], 2),
        "temporary_memory_ratio": round(memory["plain"] / memory["chunked"], 1),
        "chunked_temporary_megabytes": round(memory["chunked"] / 1e6, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
