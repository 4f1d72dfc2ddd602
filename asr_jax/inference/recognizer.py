"""Trained models, loaded for evaluation and transcription."""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PyTree

from asr_jax.config import Config, MeshConfig
from asr_jax.config_file import load_config
from asr_jax.data.pipeline import Batches, evaluation_batches
from asr_jax.decoding.fusion import NO_FUSION, Fusion
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.distributed.mesh import local_rows, make_mesh
from asr_jax.distributed.processes import all_gather_text
from asr_jax.distributed.sharding import state_shardings
from asr_jax.export.origin import Origin, origin_of
from asr_jax.inference.decode_batch import (
    encoded_frame_seconds,
    jitted_decoding,
    recognition_buckets,
    store_rows,
    transcripts,
)
from asr_jax.inference.windows import merge_windows, window_starts
from asr_jax.models.composition import merge_adapters, split_model
from asr_jax.text import Tokenizer
from asr_jax.training.checkpoint import load_averaged
from asr_jax.types import Skipped, Transcript, Utterance

# Parameters that `asr-jax export` writes next to a config.json and a tokenizer.model.
EXPORTED = "model.safetensors"
# What a run took from the model whose parameters it started from.
STARTED_FROM = "init_from.json"
# Files by which exports in other formats are recognized; these are not read here.
OTHER_FORMATS = {"recognize.stablehlo": "stablehlo", "encoder.onnx": "sherpa-onnx"}
DEFAULT_BEAM = 4


class Recognizer(NamedTuple):
    """A trained model, the mesh that holds it, and what its search uses."""

    config: Config
    tokenizer: Tokenizer
    graphdef: nnx.GraphDef
    params: PyTree
    mesh: Mesh
    checkpoint: str
    """Checkpoint that the parameters come from."""
    fusion: Fusion = NO_FUSION
    """Scorers that a beam search adds to the model."""
    origin: Origin | None = None
    """The publisher's model that they derive from; None for a model trained from nothing."""


class Recognition(NamedTuple):
    """The recognition results of a list of utterances."""

    hypotheses: list[list[Transcript] | None]
    """N-best transcripts of every utterance, best first; None for an utterance that failed."""
    failed: list[Skipped]
    """Recordings that could not be read."""
    audio_seconds: float
    """Audio recognized."""
    wall_seconds: float
    """Time taken, without compilation."""

    @property
    def texts(self) -> list[str | None]:
        """Best text of every utterance."""
        return [nbest[0].text if nbest else None for nbest in self.hypotheses]

    @property
    def best(self) -> list[Transcript | None]:
        """Best transcript of every utterance."""
        return [nbest[0] if nbest else None for nbest in self.hypotheses]


def open_run(run: Path, which: str) -> Recognizer:
    """Load the recognizer of a run directory, or of an export with --format params.

    Args:
        which: the checkpoint: best, last, a step, or average:N.
    """
    opened = open_any_run(run, which)
    if opened.config.objective.is_language_model:
        raise ValueError(
            f"{run}: a language model, which recognizes nothing by itself; pass it to a "
            "recognizer, as in evaluate RUN --language-model (docs/decoding.md)"
        )
    return opened


def require_run(run: Path) -> None:
    """Raise ValueError unless `run` is a run directory or an export with --format params."""
    for name, other in OTHER_FORMATS.items():
        if (run / name).is_file():
            raise ValueError(
                f"{run}: written by export --format {other}, which runs without asr_jax "
                "(docs/export.md); pass a run or an export with --format params"
            )
    if not (run / "config.json").is_file():
        raise ValueError(f"{run}: not a run directory, it has no config.json")


def open_any_run(run: Path, which: str) -> Recognizer:
    """Load a run or export like `open_run`, or a language model. Adapters are merged."""
    require_run(run)
    if (run / EXPORTED).is_file():
        _require_readable(run / EXPORTED)
    config = load_config(run / "config.json")
    tokenizer = Tokenizer.load(run / "tokenizer.model")
    graphdef, abstract = split_model(config, tokenizer.vocabulary_size)
    # A mesh of the devices at hand, whatever the model was trained on.
    mesh = make_mesh(MeshConfig(), jax.devices())
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        abstract,
        state_shardings(abstract, mesh),
    )
    if (run / EXPORTED).is_file():
        params, steps, origin = _load_exported(run, which, abstract)
    else:
        params, steps = load_averaged(run, which, abstract, config.checkpoint)
        origin = _origin_of_run(run)
    if config.adapter.rank:
        config, params = merge_adapters(config, params)
        graphdef, _ = split_model(config, tokenizer.vocabulary_size)
    return Recognizer(config, tokenizer, graphdef, params, mesh, steps, origin=origin)


def with_decoding(recognizer: Recognizer, **changes: int | float | None) -> Recognizer:
    """Return the recognizer with other values in config.decoding; None leaves a field unchanged."""
    given = {name: value for name, value in changes.items() if value is not None}
    config = recognizer.config
    config = dataclasses.replace(config, decoding=dataclasses.replace(config.decoding, **given))
    return recognizer._replace(config=config)


def beam_size(decoder: str, beam: int | None) -> int | None:
    """Return decoding.beam for --decoder and --beam; None leaves the run's value."""
    if beam is not None and decoder != "beam":
        raise ValueError(f"--beam {beam}: needs --decoder beam")
    if beam is not None and beam < 1:
        raise ValueError(f"--beam {beam}: must be positive")
    return {"run": None, "greedy": 0, "beam": beam or DEFAULT_BEAM}[decoder]


def _require_readable(path: Path) -> None:
    """Raise an error for an export of another version, whose config may have other fields."""
    from asr_jax.export.params import read_about

    read_about(path)


def _origin_of_run(run: Path) -> Origin | None:
    """Return the origin of the parameters that a run started from."""
    path = run / STARTED_FROM
    origin = json.loads(path.read_bytes()).get("origin") if path.is_file() else None
    return Origin(**origin) if origin else None


def _load_exported(
    directory: Path, which: str, abstract: PyTree
) -> tuple[PyTree, str, Origin | None]:
    """Return an export's parameters, the checkpoint that they come from, and their origin."""
    from asr_jax.export.params import load_params

    params, about = load_params(directory / EXPORTED, abstract)
    if which not in ("best", about["checkpoint"]):
        raise ValueError(
            f"--checkpoint {which}: {directory} was exported with the parameters of "
            f"{about['checkpoint']} and has no others"
        )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.device_put(params, shardings), about["checkpoint"], origin_of(about)


def recognize_utterances(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    *,
    report: Callable[[float], None] = lambda _: None,
) -> Recognition:
    """Recognize utterances; recordings that cannot be read are listed as failed.

    With several processes, each reads its share of the recordings, and all receive all results.
    `report` receives the fraction of the audio that is done, after each batch.
    """
    config, params, fusion = recognizer.config, recognizer.params, recognizer.fusion
    windows = [windows_of(utterance, config) for utterance in utterances]
    segments = list(itertools.chain.from_iterable(windows))
    decode = jitted_decoding(recognizer.graphdef, config, recognizer.mesh)
    batches = _segment_batches(recognizer, segments)
    found: list[Hypotheses | None] = [None] * len(segments)
    all_seconds, done_seconds = sum(segment.duration_seconds for segment in segments), 0.0
    began, compile_seconds = time.monotonic(), 0.0
    for batch in batches:
        before = time.monotonic()
        decode.compile(params, batch, fusion)
        compile_seconds += time.monotonic() - before
        store_rows(found, *decode(params, batch, fusion))
        done_seconds += sum(segments[n].duration_seconds for n in batch.utterances if n >= 0)
        report(done_seconds / all_seconds)
    results = iter(found)
    hypotheses = [
        _merged(recognizer, parts, list(itertools.islice(results, len(parts)))) for parts in windows
    ]
    wall_seconds = time.monotonic() - began - compile_seconds
    audio_seconds = sum(u.duration_seconds for u, best in zip(utterances, hypotheses) if best)
    return Recognition(hypotheses, _gather_failed(batches.failed), audio_seconds, wall_seconds)


def _segment_batches(recognizer: Recognizer, segments: list[Utterance]) -> Batches:
    config = recognizer.config
    return evaluation_batches(
        segments,
        [np.zeros(0, np.int32)] * len(segments),
        buckets=recognition_buckets(
            segments,
            config,
            recognizer.tokenizer.vocabulary_size,
            devices=recognizer.mesh.size,
        ),
        data=config.data,
        sample_rate_hz=config.features.sample_rate_hz,
        local_rows=functools.partial(local_rows, recognizer.mesh),
    )


def _gather_failed(failed: list[Skipped]) -> list[Skipped]:
    """Return the recordings that some process could not read, without duplicates."""
    by_process = all_gather_text(json.dumps([[skipped.id, skipped.reason] for skipped in failed]))
    gathered = [Skipped(*entry) for text in by_process for entry in json.loads(text)]
    return list({skipped.id: skipped for skipped in gathered}.values())


def windows_of(utterance: Utterance, config: Config) -> list[Utterance]:
    """Split a long utterance into overlapping segments; a short one is its own segment."""
    window_seconds = config.decoding.window_seconds
    if config.objective.kind == "attention" and not config.objective.has_ctc_head:
        window_seconds = 0.0
    starts = window_starts(
        utterance.duration_seconds,
        window_seconds=window_seconds,
        frame_seconds=encoded_frame_seconds(config),
    )
    if len(starts) == 1:
        return [utterance]
    return [
        utterance._replace(
            offset_seconds=utterance.offset_seconds + start,
            duration_seconds=min(window_seconds, utterance.duration_seconds - start),
        )
        for start in starts
    ]


def _merged(
    recognizer: Recognizer, segments: list[Utterance], found: list[Hypotheses | None]
) -> list[Transcript] | None:
    """Merge an utterance's segments; None if one of them could not be read."""
    config, tokenizer = recognizer.config, recognizer.tokenizer
    hypotheses = [of_segment for of_segment in found if of_segment is not None]
    if len(hypotheses) < len(segments):
        return None
    frame_seconds = encoded_frame_seconds(config)
    merged = hypotheses[0]
    if len(segments) > 1:
        merged = merge_windows(
            hypotheses,
            [segment.offset_seconds - segments[0].offset_seconds for segment in segments],
            tokenizer,
            window_seconds=config.decoding.window_seconds,
            frame_seconds=frame_seconds,
        )
    return transcripts(merged, tokenizer, frame_seconds=frame_seconds)
