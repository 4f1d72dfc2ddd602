"""A model as programs that JAX runs without this package: StableHLO, written by jax.export.

The first argument of each is the parameters, a flat dict of arrays, which are stored once. A
program is for CPU, CUDA and TPU, for any number of recordings B, and for any number of samples S
that make whole encoded frames (`frame_samples`): recordings are padded to it, with anything.

    recognize(params, samples [B, S], sample_lengths [B]) -> labels [B, N], counts [B],
        the encoded frames at which they were emitted [B, N]
    encode(params, samples [B, S], sample_lengths [B]) -> encoded [B, T, D], lengths [B]

and for a search of one's own over models that have a predictor and a joint:

    start(params, lengths [B]) -> state, predicted [B, D]
    step(params, state, labels [B]) -> state, predicted [B, D]
    join(params, encoded [B, D], predicted [B, D]) -> symbols [B, V], durations [B, X]

`encoded` and `predicted` are projected to the joint's width, where there is a joint, which gives
log-probabilities (models.joint.Scores). Of its lengths `start` sees no more than their number.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.search import search
from asr_jax.export.params import named
from asr_jax.features.frames import hop_samples
from asr_jax.features.logmel import log_mel

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"
PARAMS = "params.npz"


class Program(NamedTuple):
    call: Callable[..., Any]
    """Of parameters and arguments."""
    arguments: tuple[Any, ...]
    """Their shapes, in which sizes may be symbols; without those of the parameters."""


def frame_samples(config: Config) -> int:
    """Samples from one encoded frame to the next."""
    return hop_samples(config.features) * config.encoder.subsampling_factor


def flat(params: Any) -> dict[str, np.ndarray]:
    """The programs' first argument."""
    return {name: np.asarray(value) for name, value in named(params).items()}


def write(folder: Path, programs: dict[str, Program], params: dict[str, np.ndarray]) -> None:
    """NAME.stablehlo of every program, and params.npz."""
    np.savez(folder / PARAMS, **params)  # pyright: ignore[reportArgumentType]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    for name, program in programs.items():
        exported = export.export(jax.jit(program.call), platforms=PLATFORMS)(
            shapes, *program.arguments
        )
        (folder / (name + SUFFIX)).write_bytes(exported.serialize())


def load(folder: Path) -> tuple[dict[str, Callable[..., Any]], dict[str, np.ndarray]]:
    """What `write` wrote: programs by their names, and parameters."""
    programs = {
        path.stem: jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
        for path in folder.glob("*" + SUFFIX)
    }
    with np.load(folder / PARAMS) as file:
        return programs, dict(file)


def programs(graphdef: nnx.GraphDef, params: Any, config: Config) -> dict[str, Program]:
    """Those of a model, by name."""
    has_joint = "joint" in params

    def model_of(params: dict[str, Any]) -> Any:
        return nnx.merge(graphdef, _nested(params))

    def encoded(model, samples, sample_lengths):
        features, lengths = log_mel(samples, sample_lengths, config.features)
        chunk = chunk_frames(config.decoding.chunk_ms, config)
        return model.encoder(features, lengths, chunk_frames=chunk)

    def recognize(params, samples, sample_lengths):
        model = model_of(params)
        found = search(model, *encoded(model, samples, sample_lengths), config=config.decoding)
        return found.labels[:, 0], found.counts[:, 0], found.frames[:, 0]

    def encode(params, samples, sample_lengths):
        model = model_of(params)
        frames, lengths = encoded(model, samples, sample_lengths)
        return model.joint.encoder_projection(frames) if has_joint else frames, lengths

    def with_prediction(model, state):
        return state, model.joint.predictor_projection(model.predictor.output(state))

    def start(params, lengths):
        model = model_of(params)
        return with_prediction(model, model.predictor.start(lengths.shape[0]))

    def step(params, state, labels):
        model = model_of(params)
        return with_prediction(model, model.predictor.step(state, labels))

    def join(params, encoded, predicted):
        return tuple(model_of(params).joint.scores(encoded, predicted))

    b, t = export.symbolic_shape("b, t")
    integers = jax.ShapeDtypeStruct((b,), jnp.int32)
    audio = (jax.ShapeDtypeStruct((b, t * frame_samples(config)), jnp.float32), integers)
    found = {"recognize": Program(recognize, audio), "encode": Program(encode, audio)}
    if has_joint:
        side = jax.ShapeDtypeStruct((b, config.joint.width), jnp.float32)
        state, _ = jax.eval_shape(start, flat(params), integers)
        found |= {
            "start": Program(start, (integers,)),
            "step": Program(step, (state, integers)),
            "join": Program(join, (side, side)),
        }
    return found


def _nested(params: dict[str, Any]) -> dict[str, Any]:
    """The tree whose leaves are named by their paths."""
    tree: dict[str, Any] = {}
    for name, value in params.items():
        *path, last = name.split(".")
        inner = tree
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return tree
