"""Where a training step's time goes: python benchmarks/train_step.py CONFIG [--FIELD VALUE ...]

For every bucket, with batches of noise at four fifths of the bucket's length: milliseconds of wall
and processor time of the whole step and of its parts, each compiled by itself, and seconds of audio
per second. Prints a table, and a line of JSON at the end.
"""

import functools
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

from asr_jax.commands.arguments import load_config
from asr_jax.commands.batch_shapes import batch_shapes
from asr_jax.commands.devices import prepare_devices
from asr_jax.losses import transducer_loss
from asr_jax.mesh import batch_sharding, make_mesh
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import initial_state, split_model
from asr_jax.training.step import augmented_features, train_step
from asr_jax.types import Batch

REPEATS = 15


def measure(function: Any, *arguments: Any) -> dict[str, float]:
    """Median wall and mean processor milliseconds of a call, and seconds to compile it."""
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began
    jax.block_until_ready(compiled(*arguments))
    walls, before = [], time.process_time()
    for _ in range(REPEATS):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        walls.append(1e3 * (time.perf_counter() - began))
    processor = 1e3 * (time.process_time() - before) / REPEATS
    return {
        "wall_ms": statistics.median(walls),
        "processor_ms": processor,
        "compile_s": compile_seconds,
    }


def noise(shape: Batch, vocabulary: int) -> Batch:
    random = np.random.default_rng(0)
    rows, samples = shape.samples.shape
    labels = shape.labels.shape[1]
    return Batch(
        samples=random.normal(scale=0.1, size=(rows, samples)).astype(np.float32),
        sample_lengths=np.full(rows, samples * 4 // 5, np.int32),
        labels=random.integers(2, vocabulary, (rows, labels)).astype(np.int32),
        label_lengths=np.full(rows, labels // 2, np.int32),
        tempo=np.ones(rows, np.float32),
        utterances=np.arange(rows, dtype=np.int32),
        joined=np.full(rows, -1, np.int32),
    )


def main() -> None:
    config = load_config(Path(sys.argv[1]), sys.argv[2:])
    prepare_devices(config.mesh)
    mesh = make_mesh(config.mesh, jax.devices())
    vocabulary = 29 if config.tokenizer.kind == "char" else config.tokenizer.vocabulary_size
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    state = initial_state(config, vocabulary, optimizer, mesh)
    graphdef, _ = split_model(config, vocabulary)
    key = jax.random.key(0)
    results = []
    for shape in batch_shapes(config):
        batch = jax.device_put(noise(shape, vocabulary), batch_sharding(mesh))
        featurize = lambda batch: augmented_features(batch, key, config=config, mesh=mesh)
        features, lengths = jax.jit(featurize)(batch)

        def encode(params: Any, features: Any, lengths: Any) -> jax.Array:
            encoded, _ = nnx.merge(graphdef, params).encoder(features, lengths, key=key)
            return jnp.sum(encoded**2)

        frames, width = -(-features.shape[1] // 4), config.joint.width
        rows, labels = batch.labels.shape
        normal = lambda *size: jnp.asarray(
            np.random.default_rng(1).normal(size=size).astype(np.float32)
        )
        joint = (normal(rows, frames, width), normal(rows, labels + 1, width))
        kernel, bias = 0.1 * normal(width, vocabulary), jnp.zeros(vocabulary)
        frame_lengths = jnp.full(rows, frames * 4 // 5)

        def lose(encoded: Any, predicted: Any, kernel: Any, bias: Any) -> jax.Array:
            return jnp.sum(
                transducer_loss(
                    encoded,
                    predicted,
                    kernel,
                    bias,
                    jnp.asarray(batch.labels),
                    frame_lengths,
                    jnp.asarray(batch.label_lengths),
                    activation=config.joint.activation,
                    chunk_frames=config.joint.chunk_frames,
                )
            )

        def update(gradients: Any, state: Any) -> Any:
            updates, moments = optimizer.update(gradients, state.optimizer, state.params)
            params = optax.apply_updates(state.params, updates)
            return params, moments, optax.incremental_update(params, state.averaged, 0.001)

        parts = {
            "step": measure(
                functools.partial(
                    train_step, graphdef=graphdef, optimizer=optimizer, config=config, mesh=mesh
                ),
                state,
                batch,
            ),
            "features": measure(featurize, batch),
            "encoder": measure(jax.grad(encode), state.params, features, lengths),
            "joint and loss": measure(jax.grad(lose, argnums=(0, 1, 2, 3)), *joint, kernel, bias),
            "optimizer": measure(update, state.params, state),
        }
        audio_seconds = rows * batch.samples.shape[1] * 0.8 / config.features.sample_rate_hz
        audio_rate = audio_seconds / parts["step"]["wall_ms"] * 1e3
        print(f"{rows} utterances x {batch.samples.shape[1]} samples: {audio_rate:.0f} audio s/s")
        for name, figures in parts.items():
            share = figures["wall_ms"] / parts["step"]["wall_ms"]
            print(
                f"  {name:15s} {figures['wall_ms']:8.1f} ms wall {figures['processor_ms']:8.1f} ms "
                f"processor  {share:6.1%}  compile {figures['compile_s']:.0f} s"
            )
        results.append(
            {
                "rows": rows,
                "samples": batch.samples.shape[1],
                "audio_seconds_per_second": audio_rate,
            }
            | {"parts": parts}
        )
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "buckets": results}))


if __name__ == "__main__":
    main()
