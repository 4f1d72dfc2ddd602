"""A run's model brought back for evaluation and transcription."""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from asr_jax.config import Config, MeshConfig
from asr_jax.config_file import load_config
from asr_jax.data.pipeline import evaluation_batches
from asr_jax.decoding.fusion import NO_FUSION, Fusion
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.distributed.mesh import local_rows, make_mesh
from asr_jax.distributed.processes import all_gather_text
from asr_jax.distributed.sharding import state_shardings
from asr_jax.inference.decode_batch import (
    encoded_frame_seconds,
    found_labels,
    make_recognizer,
    transcripts,
)
from asr_jax.inference.windows import merge_windows, window_starts
from asr_jax.models.composition import split_model
from asr_jax.text import Tokenizer
from asr_jax.training.checkpoint import load_averaged
from asr_jax.types import Batch, Skipped, Transcript, Utterance

# The parameters that `asr-jax export` writes beside a config.json and a tokenizer.model.
EXPORTED = "model.safetensors"
# What tells the folders of its other formats, which are not read here.
OTHER_FORMS = {"recognize.stablehlo": "stablehlo", "encoder.onnx": "sherpa-onnx"}
DEFAULT_BEAM = 4


class Recognizer(NamedTuple):
    config: Config
    tokenizer: Tokenizer
    graphdef: nnx.GraphDef
    params: Any
    mesh: Mesh
    checkpoint: str
    """Which steps the parameters are of."""
    compiled: set[tuple[int, ...]]
    """Shapes of batches seen so far."""
    fusion: Fusion = NO_FUSION
    """What a beam search adds to the model's scores."""


class Recognition(NamedTuple):
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
    return Recognizer(config, tokenizer, graphdef, params, mesh, steps, set())


def with_decoding(recognizer: Recognizer, **changes: Any) -> Recognizer:
    """The same with other values of config.decoding's fields; None leaves a field as it is."""
    given = {name: value for name, value in changes.items() if value is not None}
    config = recognizer.config
    config = dataclasses.replace(config, decoding=dataclasses.replace(config.decoding, **given))
    return recognizer._replace(config=config, compiled=set())


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


def _load_exported(directory: Path, which: str, abstract: Any) -> tuple[Any, str]:
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
    config, params = recognizer.config, recognizer.params
    recognize = make_recognizer(recognizer.graphdef, config, recognizer.mesh)
    run = lambda params, batch: recognize(params, batch, recognizer.fusion)
    windows = [windows_of(utterance, config) for utterance in utterances]
    stretches = list(itertools.chain.from_iterable(windows))
    no_labels = [np.zeros(0, np.int32)] * len(stretches)
    devices = recognizer.mesh.size
    most = max(1, len(stretches))
    rows = tuple(-(-min(n, most) // devices) * devices for n in config.data.bucket_utterances)
    data = dataclasses.replace(config.data, bucket_utterances=rows)
    batches = evaluation_batches(
        stretches,
        no_labels,
        data=data,
        sample_rate_hz=config.features.sample_rate_hz,
        multiple=devices,
        local_rows=functools.partial(local_rows, recognizer.mesh),
    )
    compile_seconds = 0.0

    def compiled_first() -> Iterator[Batch]:
        nonlocal compile_seconds
        for batch in batches:
            if batch.samples.shape not in recognizer.compiled:
                recognizer.compiled.add(batch.samples.shape)
                before = time.monotonic()
                jax.block_until_ready(run(params, batch))
                compile_seconds += time.monotonic() - before
            yield batch

    began = time.monotonic()
    found = iter(found_labels(run, params, compiled_first(), utterances=len(stretches)))
    whole = [_whole(recognizer, of, list(itertools.islice(found, len(of)))) for of in windows]
    wall_seconds = time.monotonic() - began - compile_seconds
    everywhere = all_gather_text(json.dumps([[s.id, s.reason] for s in batches.failed]))
    failed = [Skipped(*one) for here in everywhere for one in json.loads(here)]
    failed = list({skipped.id: skipped for skipped in failed}.values())
    audio_seconds = sum(u.duration_seconds for u, best in zip(utterances, whole) if best)
    return Recognition(whole, failed, audio_seconds, wall_seconds)


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


def _whole(
    recognizer: Recognizer, windows: list[Utterance], found: list[Hypotheses | None]
) -> list[Transcript] | None:
    """None where one of the windows could not be read."""
    there = [one for one in found if one is not None]
    if len(there) < len(windows):
        return None
    frame_seconds = encoded_frame_seconds(recognizer.config)
    if len(windows) > 1:
        starts = [window.offset_seconds - windows[0].offset_seconds for window in windows]
        window_seconds = recognizer.config.decoding.window_seconds
        there = [
            merge_windows(
                there,
                starts,
                recognizer.tokenizer,
                window_seconds=window_seconds,
                frame_seconds=frame_seconds,
            )
        ]
    return transcripts(there[0], recognizer.tokenizer, frame_seconds=frame_seconds)
