"""A run's model brought back for evaluation and transcription."""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Sequence
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
from asr_jax.inference.decode_batch import (
    encoded_frame_seconds,
    jitted_decoding,
    store_rows,
    transcripts,
)
from asr_jax.inference.windows import merge_windows, window_starts
from asr_jax.models.composition import split_model
from asr_jax.text import Tokenizer
from asr_jax.training.checkpoint import load_averaged
from asr_jax.types import Skipped, Transcript, Utterance

# The parameters that `asr-jax export` writes beside a config.json and a tokenizer.model.
EXPORTED = "model.safetensors"
# What tells the folders of its other formats, which are not read here.
OTHER_FORMS = {"recognize.stablehlo": "stablehlo", "encoder.onnx": "sherpa-onnx"}
DEFAULT_BEAM = 4


class Recognizer(NamedTuple):
    """A trained model on the devices of a mesh, and how it searches."""

    config: Config
    tokenizer: Tokenizer
    graphdef: nnx.GraphDef
    params: PyTree
    mesh: Mesh
    checkpoint: str
    """Which steps the parameters are of."""
    fusion: Fusion = NO_FUSION
    """What a beam search adds to the model's scores."""


class Recognition(NamedTuple):
    """What was recognized in utterances, and what could not be read."""

    hypotheses: list[list[Transcript] | None]
    """Of every utterance, the best first; None for those that failed."""
    failed: list[Skipped]
    audio_seconds: float
    wall_seconds: float
    """Compiling not counted."""

    @property
    def texts(self) -> list[str | None]:
        return [found[0].text if found else None for found in self.hypotheses]

    @property
    def best(self) -> list[Transcript | None]:
        return [found[0] if found else None for found in self.hypotheses]


def open_run(run: Path, which: str) -> Recognizer:
    """Config, tokenizer and averaged parameters of a run directory, or of an exported one."""
    opened = open_any_run(run, which)
    if opened.config.objective.kind == "language_model":
        raise ValueError(
            f"{run}: a language model, which recognises nothing by itself; it goes with a "
            "recogniser, as evaluate RUN --language-model (docs/decoding.md)"
        )
    return opened


def require_run(run: Path) -> None:
    """Raises ValueError for what is neither a run directory nor an exported one."""
    for name, form in OTHER_FORMS.items():
        if (run / name).is_file():
            raise ValueError(
                f"{run}: what --format {form} wrote, which runs without asr_jax (docs/export.md); "
                "asr_jax takes runs and what --format params wrote"
            )
    if not (run / "config.json").is_file():
        raise ValueError(f"{run}: not a run directory, it has no config.json")


def open_any_run(run: Path, which: str) -> Recognizer:
    """The same, and also of a language model."""
    require_run(run)
    if (run / EXPORTED).is_file():
        _require_readable(run / EXPORTED)
    config = load_config(run / "config.json")
    tokenizer = Tokenizer.load(run / "tokenizer.model")
    graphdef, abstract = split_model(config, tokenizer.vocabulary_size)
    # Of the devices that are here, whatever it was trained on.
    mesh = make_mesh(MeshConfig(), jax.devices())
    abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
        abstract,
        state_shardings(abstract, mesh),
    )
    if (run / EXPORTED).is_file():
        params, steps = _load_exported(run, which, abstract)
    else:
        params, steps = load_averaged(run, which, abstract, config.checkpoint)
    return Recognizer(config, tokenizer, graphdef, params, mesh, steps)


def with_decoding(recognizer: Recognizer, **changes: float | None) -> Recognizer:
    """The same with other values of config.decoding's fields; None leaves a field as it is."""
    given = {name: value for name, value in changes.items() if value is not None}
    config = recognizer.config
    config = dataclasses.replace(config, decoding=dataclasses.replace(config.decoding, **given))
    return recognizer._replace(config=config)


def beam_size(decoder: str, beam: int | None) -> int | None:
    """decoding.beam as `--decoder` and `--beam` say it; None: as the run does."""
    if beam is not None and decoder != "beam":
        raise ValueError(f"--beam {beam}: is of --decoder beam")
    if beam is not None and beam < 1:
        raise ValueError(f"--beam {beam}: must be positive")
    return {"run": None, "greedy": 0, "beam": beam or DEFAULT_BEAM}[decoder]


def _require_readable(path: Path) -> None:
    """Before the config, of which another version may have other fields."""
    from asr_jax.export.params import read_about

    read_about(path)


def _load_exported(directory: Path, which: str, abstract: PyTree) -> tuple[PyTree, str]:
    from asr_jax.export.params import load_params

    params, about = load_params(directory / EXPORTED, abstract)
    if which not in ("best", about["checkpoint"]):
        raise ValueError(
            f"--checkpoint {which}: {directory} was exported with the parameters of "
            f"{about['checkpoint']} and has no others"
        )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.device_put(params, shardings), about["checkpoint"]


def recognize_utterances(recognizer: Recognizer, utterances: Sequence[Utterance]) -> Recognition:
    """What is found in every utterance; a recording that cannot be read gives none, and is listed.

    Of several processes each reads its share, and all get everything.
    """
    config, params, fusion = recognizer.config, recognizer.params, recognizer.fusion
    windows = [windows_of(utterance, config) for utterance in utterances]
    segments = list(itertools.chain.from_iterable(windows))
    decode = jitted_decoding(recognizer.graphdef, config, recognizer.mesh)
    batches = _segment_batches(recognizer, segments)
    found: list[Hypotheses | None] = [None] * len(segments)
    began, compile_seconds = time.monotonic(), 0.0
    for batch in batches:
        before = time.monotonic()
        decode.compile(params, batch, fusion)
        compile_seconds += time.monotonic() - before
        store_rows(found, *decode(params, batch, fusion))
    of_segments = iter(found)
    hypotheses = [
        _merged(recognizer, segments, list(itertools.islice(of_segments, len(segments))))
        for segments in windows
    ]
    wall_seconds = time.monotonic() - began - compile_seconds
    audio_seconds = sum(u.duration_seconds for u, best in zip(utterances, hypotheses) if best)
    return Recognition(hypotheses, _gather_failed(batches.failed), audio_seconds, wall_seconds)


def _segment_batches(recognizer: Recognizer, segments: list[Utterance]) -> Batches:
    config, devices = recognizer.config, recognizer.mesh.size
    # No more rows than there are segments, in whole rows for every device.
    most = max(1, len(segments))
    rows = tuple(-(-min(n, most) // devices) * devices for n in config.data.bucket_utterances)
    return evaluation_batches(
        segments,
        [np.zeros(0, np.int32)] * len(segments),
        data=dataclasses.replace(config.data, bucket_utterances=rows),
        sample_rate_hz=config.features.sample_rate_hz,
        multiple=devices,
        local_rows=functools.partial(local_rows, recognizer.mesh),
    )


def _gather_failed(failed: list[Skipped]) -> list[Skipped]:
    """Return the recordings that any process could not read, each once."""
    by_process = all_gather_text(json.dumps([[skipped.id, skipped.reason] for skipped in failed]))
    gathered = [Skipped(*entry) for text in by_process for entry in json.loads(text)]
    return list({skipped.id: skipped for skipped in gathered}.values())


def windows_of(utterance: Utterance, config: Config) -> list[Utterance]:
    """The stretches in which it is recognised: itself, where it is not long."""
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
    """None where one of the segments could not be read."""
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
