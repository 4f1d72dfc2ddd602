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

With decoding.chunk_ms, of models that recognise streams, also

    start_stream(params, lengths [B]) -> state, a dict of arrays
    recognize_chunk(params, state, samples [B, S], sample_lengths [B]) -> state, labels [B, N],
        counts [B], the encoded frames of the chunk at which they were emitted [B, N]
    encode_chunk(params, state, samples [B, S], sample_lengths [B]) -> state, encoded [B, C, D],
        lengths [B]

of S samples: a chunk, a hop before it and a hop behind it (decoding.stream.encode_chunk).
about.json has the sizes, which config.json says in milliseconds.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.decoding.search import search
from asr_jax.decoding.stream import (
    cannot_stream,
    chunk_samples,
    encode_chunk,
    start_stream,
    stream_step,
)
from asr_jax.export.format_version import ABOUT, ArtifactError, require_readable
from asr_jax.export.params import named
from asr_jax.features.frames import hop_samples
from asr_jax.features.logmel import log_mel
from asr_jax.models.transducer import Transducer

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"
PARAMS = "params.npz"
ABOUT_FILE = "about.json"


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


def write(
    folder: Path, programs: dict[str, Program], params: dict[str, np.ndarray], config: Config
) -> None:
    """NAME.stablehlo of every program, params.npz, and about.json: what wrote them, and how many
    samples make an encoded frame and, of streams, a chunk and a hop."""
    sizes = {
        "sample_rate_hz": config.features.sample_rate_hz,
        "frame_samples": frame_samples(config),
        "hop_samples": hop_samples(config.features),
        "chunk_samples": chunk_frames(config.decoding.chunk_ms, config) * frame_samples(config),
    }
    (folder / ABOUT_FILE).write_text(json.dumps({**ABOUT, "jax": jax.__version__, **sizes}))
    np.savez(folder / PARAMS, **params)  # pyright: ignore[reportArgumentType]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    for name, program in programs.items():
        exported = export.export(jax.jit(program.call), platforms=PLATFORMS)(
            shapes, *program.arguments
        )
        (folder / (name + SUFFIX)).write_bytes(exported.serialize())


def load(folder: Path) -> tuple[dict[str, Callable[..., Any]], dict[str, np.ndarray]]:
    """What `write` wrote: programs by their names, and parameters.

    Raises ArtifactError where this package, or this JAX, reads other versions.
    """
    path = folder / ABOUT_FILE
    about = json.loads(path.read_text()) if path.is_file() else {}
    require_readable(folder, about)
    oldest = export.minimum_supported_calling_convention_version
    newest = export.maximum_supported_calling_convention_version
    programs = {}
    for path in folder.glob("*" + SUFFIX):
        exported = export.deserialize(bytearray(path.read_bytes()))
        version = exported.calling_convention_version
        if not oldest <= version <= newest:
            raise ArtifactError(
                f"{path}: written by JAX {about['jax']}, calling convention {version}; JAX "
                f"{jax.__version__} reads {oldest} to {newest}: export the run again"
            )
        programs[path.stem] = jax.jit(exported.call)
    with np.load(folder / PARAMS) as file:
        return programs, dict(file)


def programs(graphdef: nnx.GraphDef, params: Any, config: Config) -> dict[str, Program]:
    """Those of a model, by name."""
    model_of = lambda params: nnx.merge(graphdef, _nested(params))
    b, t = export.symbolic_shape("b, t")
    found = _of_recordings(model_of, config, b, t)
    if "joint" in params:
        found |= _of_a_search(model_of, flat(params), config, b)
    if config.decoding.chunk_ms and not cannot_stream(config):
        found |= _of_streams(model_of, flat(params), config, b)
    return found


def _of_recordings(
    model_of: Callable[[Any], Any], config: Config, b: Any, t: Any
) -> dict[str, Program]:
    def encoded(model, samples, sample_lengths):
        features, lengths = log_mel(samples, sample_lengths, config.features)
        chunk = chunk_frames(config.decoding.chunk_ms, config)
        return model.encoder(features, lengths, chunk_frames=chunk)

    def recognize(params, samples, sample_lengths):
        model = model_of(params)
        found = search(model, *encoded(model, samples, sample_lengths), config=config.decoding)
        return _labels(found)

    def encode(params, samples, sample_lengths):
        model = model_of(params)
        frames, lengths = encoded(model, samples, sample_lengths)
        if isinstance(model, Transducer):
            frames = model.joint.encoder_projection(frames)
        return frames, lengths

    audio = (_floats(b, t * frame_samples(config)), _integers(b))
    return {"recognize": Program(recognize, audio), "encode": Program(encode, audio)}


def _of_a_search(
    model_of: Callable[[Any], Any], params: Any, config: Config, b: Any
) -> dict[str, Program]:
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

    side = _floats(b, config.joint.width)
    state, _ = jax.eval_shape(start, params, _integers(b))
    return {
        "start": Program(start, (_integers(b),)),
        "step": Program(step, (state, _integers(b))),
        "join": Program(join, (side, side)),
    }


def _of_streams(
    model_of: Callable[[Any], Any], params: Any, config: Config, b: Any
) -> dict[str, Program]:
    def start(params, lengths):
        return start_stream(model_of(params), lengths.shape[0], config=config)

    # Whoever runs the programs has none of our classes: there a state is a dict.
    state, treedef = jax.tree.flatten(jax.eval_shape(start, params, _integers(b)))
    names = [*named(treedef.unflatten(state))]
    of_dict = lambda state: treedef.unflatten([state[name] for name in names])

    def recognize_chunk(params, state, *samples):
        after, found = stream_step(model_of(params), of_dict(state), *samples, config=config)
        return named(after), *_labels(found)

    def encode_chunk_(params, state, *samples):
        model, before = model_of(params), of_dict(state)
        encoder, frames, lengths = encode_chunk(model, before.encoder, *samples, config=config)
        after = named(before._replace(encoder=encoder))
        return after, model.joint.encoder_projection(frames), lengths

    chunk = (dict(zip(names, state)), _floats(b, chunk_samples(config)), _integers(b))
    return {
        "start_stream": Program(lambda *given: named(start(*given)), (_integers(b),)),
        "recognize_chunk": Program(recognize_chunk, chunk),
        "encode_chunk": Program(encode_chunk_, chunk),
    }


def _labels(found: Hypotheses) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the best of every row: labels [B, N], counts [B], frames [B, N]."""
    return found.labels[:, 0], found.counts[:, 0], found.frames[:, 0]


def _floats(*shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _integers(*shape: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


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
