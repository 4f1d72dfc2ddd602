"""A model as programs that JAX runs without this package: StableHLO, written by jax.export.

The first argument of every program is the parameters, a flat dict of arrays, which is stored once.
Programs run on CPU, CUDA and TPU, for any number of recordings B and for any number of samples S
that is a multiple, not 0, of the encoded frame (`frame_samples`): recordings, which may be empty,
are padded with any values.

    recognize(params, samples [B, S], sample_lengths [B]) -> labels [B, N], counts [B],
        the encoded frames at which they were emitted [B, N]
    encode(params, samples [B, S], sample_lengths [B]) -> encoded [B, T, D], lengths [B]

and for other searches, if the model has a predictor and a joint:

    start(params, lengths [B]) -> state, predicted [B, D]
    step(params, state, labels [B]) -> state, predicted [B, D]
    join(params, encoded [B, D], predicted [B, D]) -> symbols [B, V], durations [B, X]

`encoded` and `predicted` are projected to the joint's width if there is a joint; `join` returns
log-probabilities (models.joint.Scores). `start` uses only the number of its lengths.

With decoding.chunk_ms, models that recognize streams also have

    start_stream(params, lengths [B]) -> state, a dict of arrays
    recognize_chunk(params, state, samples [B, S], sample_lengths [B]) -> state, labels [B, N],
        counts [B], the encoded frames of the chunk at which they were emitted [B, N]
    encode_chunk(params, state, samples [B, S], sample_lengths [B]) -> state, encoded [B, C, D],
        lengths [B]

where S samples are a chunk and samples before and after it (decoding.stream.encode_chunk).
about.json has the sizes in samples, config.json in milliseconds.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export
from jaxtyping import PyTree

from asr_jax.config import Config, chunk_frames
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.decoding.search import search
from asr_jax.decoding.stream import (
    cannot_stream,
    chunk_samples,
    encode_chunk,
    start_samples,
    start_stream,
    stream_step,
)
from asr_jax.export.format_version import ABOUT, ArtifactError, require_readable
from asr_jax.export.params import leaves_by_path
from asr_jax.features.frames import hop_samples, reach_hops
from asr_jax.features.logmel import log_mel
from asr_jax.models.transducer import Transducer

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"
PARAMS = "params.npz"
ABOUT_FILE = "about.json"

Params = dict[str, np.ndarray]
"""Parameters by path, the first argument of every program."""


class Program(NamedTuple):
    """A function of parameters and arguments, and the shapes of its arguments."""

    call: Callable[..., PyTree]
    """call(params, *arguments)."""
    arguments: tuple[PyTree[jax.ShapeDtypeStruct], ...]
    """Shapes of the arguments without the parameters; a size may be a symbol."""


def frame_samples(config: Config) -> int:
    """Return the number of samples from one encoded frame to the next."""
    return hop_samples(config.features) * config.encoder.subsampling_factor


def flat(params: PyTree) -> Params:
    """Return the parameters as the first argument of every program."""
    return {name: np.asarray(value) for name, value in leaves_by_path(params).items()}


def write(folder: Path, programs: dict[str, Program], params: Params, config: Config) -> None:
    """Write NAME.stablehlo of every program, params.npz, and about.json: format, version, and the
    samples in an encoded frame and a hop. For streams, these are followed by those in a chunk,
    before and after every chunk, and before the recording in the first one."""
    before, after = reach_hops(config.features)
    sizes = {
        "sample_rate_hz": config.features.sample_rate_hz,
        "frame_samples": frame_samples(config),
        "hop_samples": hop_samples(config.features),
        "chunk_samples": chunk_frames(config.decoding.chunk_ms, config) * frame_samples(config),
        "before_samples": before * hop_samples(config.features),
        "after_samples": after * hop_samples(config.features),
        "start_samples": start_samples(config),
    }
    about = json.dumps({**ABOUT, "jax": jax.__version__, **sizes})
    (folder / ABOUT_FILE).write_text(about, encoding="utf-8")
    np.savez(folder / PARAMS, **params)  # pyright: ignore[reportArgumentType]
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    for name, program in programs.items():
        exported = export.export(jax.jit(program.call), platforms=PLATFORMS)(
            shapes, *program.arguments
        )
        (folder / (name + SUFFIX)).write_bytes(exported.serialize())


def load(folder: Path) -> tuple[dict[str, Callable[..., PyTree]], Params]:
    """Read what `write` wrote: programs by name, and parameters.

    Raises ArtifactError for a version that this package, or this JAX, cannot read.
    """
    path = folder / ABOUT_FILE
    about = json.loads(path.read_bytes()) if path.is_file() else {}
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


def programs(graphdef: nnx.GraphDef, params: PyTree, config: Config) -> dict[str, Program]:
    """Return the programs of a model by name."""
    by_name = _recording_programs(graphdef, config)
    if "joint" in params:
        by_name |= _search_programs(graphdef, flat(params), config)
    if config.decoding.chunk_ms and not cannot_stream(config):
        by_name |= _stream_programs(graphdef, flat(params), config)
    return by_name


def _recording_programs(graphdef: nnx.GraphDef, config: Config) -> dict[str, Program]:
    def encoded(model, samples, sample_lengths):
        features, lengths = log_mel(samples, sample_lengths, config.features)
        chunk = chunk_frames(config.decoding.chunk_ms, config)
        return model.encoder(features, lengths, chunk_frames=chunk)

    def recognize(params, samples, sample_lengths):
        model = nnx.merge(graphdef, _nested(params))
        frames, lengths = encoded(model, samples, sample_lengths)
        return _best_labels(search(model, frames, lengths, config=config.decoding))

    def encode(params, samples, sample_lengths):
        model = nnx.merge(graphdef, _nested(params))
        frames, lengths = encoded(model, samples, sample_lengths)
        if isinstance(model, Transducer):
            frames = model.joint.encoder_projection(frames)
        return frames, lengths

    b, t = export.symbolic_shape("b, t")
    audio = (_floats(b, t * frame_samples(config)), _integers(b))
    return {"recognize": Program(recognize, audio), "encode": Program(encode, audio)}


def _search_programs(graphdef: nnx.GraphDef, params: Params, config: Config) -> dict[str, Program]:
    def with_prediction(model, state):
        return state, model.joint.predictor_projection(model.predictor.output(state))

    def start(params, lengths):
        model = _transducer(graphdef, params)
        return with_prediction(model, model.predictor.start(lengths.shape[0]))

    def step(params, state, labels):
        model = _transducer(graphdef, params)
        return with_prediction(model, model.predictor.step(state, labels))

    def join(params, encoded, predicted):
        return tuple(_transducer(graphdef, params).joint.scores(encoded, predicted))

    (b,) = export.symbolic_shape("b")
    projected = _floats(b, config.joint.width)
    state, _ = jax.eval_shape(start, params, _integers(b))
    return {
        "start": Program(start, (_integers(b),)),
        "step": Program(step, (state, _integers(b))),
        "join": Program(join, (projected, projected)),
    }


def _stream_programs(graphdef: nnx.GraphDef, params: Params, config: Config) -> dict[str, Program]:
    def start(params, lengths):
        return start_stream(_transducer(graphdef, params), lengths.shape[0], config=config)

    # A program's caller has none of this package's classes: its state is a dict.
    (b,) = export.symbolic_shape("b")
    state, treedef = jax.tree.flatten(jax.eval_shape(start, params, _integers(b)))
    names = [*leaves_by_path(treedef.unflatten(state))]

    def stream_state(state):
        return treedef.unflatten([state[name] for name in names])

    def start_dict(params, lengths):
        return leaves_by_path(start(params, lengths))

    def recognize_chunk(params, state, *samples):
        model = _transducer(graphdef, params)
        after, hypotheses = stream_step(model, stream_state(state), *samples, config=config)
        return leaves_by_path(after), *_best_labels(hypotheses)

    def encode_chunk_dict(params, state, *samples):
        model, before = _transducer(graphdef, params), stream_state(state)
        encoder, frames, lengths = encode_chunk(model, before.encoder, *samples, config=config)
        after = leaves_by_path(before._replace(encoder=encoder))
        return after, model.joint.encoder_projection(frames), lengths

    chunk = (dict(zip(names, state)), _floats(b, chunk_samples(config)), _integers(b))
    return {
        "start_stream": Program(start_dict, (_integers(b),)),
        "recognize_chunk": Program(recognize_chunk, chunk),
        "encode_chunk": Program(encode_chunk_dict, chunk),
    }


def _transducer(graphdef: nnx.GraphDef, params: dict[str, jax.Array]) -> Transducer:
    model = nnx.merge(graphdef, _nested(params))
    assert isinstance(model, Transducer)
    return model


def _best_labels(hypotheses: Hypotheses) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return labels [B, N], counts [B] and frames [B, N] of every row's best hypothesis."""
    return hypotheses.labels[:, 0], hypotheses.counts[:, 0], hypotheses.frames[:, 0]


def _floats(*shape: object) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _integers(*shape: object) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _nested(params: dict[str, jax.Array]) -> PyTree:
    """Return the tree whose leaves are named by their paths."""
    tree: PyTree = {}
    for name, value in params.items():
        *path, last = name.split(".")
        inner = tree
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return tree
