"""`asr-jax export --format stablehlo`: write programs that need only JAX, and check them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from asr_jax.commands.export.check import ReferenceTranscripts, require_equal
from asr_jax.config import Config
from asr_jax.config_file import write_config
from asr_jax.decoding.stream import chunk_features, chunk_samples, start_samples
from asr_jax.errors import UsageError
from asr_jax.export import stablehlo
from asr_jax.export.difference import relative_difference
from asr_jax.export.model_card import ExportCheck
from asr_jax.features.frames import hop_samples
from asr_jax.inference.recognizer import Recognizer, with_decoding
from asr_jax.inference.streaming import recognize_stream

# The same operations compiled for other shapes may sum in another order.
_LARGEST_DIFFERENCE = 1e-4
# Recordings in a batch, padded to one length.
_BATCH = 8

FORM = "programs for JAX (StableHLO)"
_USE = """
    pip install jax flatbuffers

and the script in docs/export.md of asr_jax:

    python recognize.py {name} recording.wav
"""


def usage(name: str, config: Config) -> str:
    """Return how to run the folder, for its model card."""
    return _USE.format(name=name)


def prepared(recognizer: Recognizer, *, dtype: str, int8: bool) -> Recognizer:
    """Return the run without windows, like the programs. Raises UsageError for attention models."""
    kind = recognizer.config.objective.kind
    if kind == "attention":
        raise UsageError(f"--format stablehlo: objective.kind = {kind!r} cannot be exported")
    if dtype != "float32" or int8:
        raise UsageError(
            "--format stablehlo: its programs compute with float32 parameters; drop --dtype and "
            "--quantize"
        )
    return with_decoding(recognizer, window_seconds=0.0)


def write(
    folder: Path, recognizer: Recognizer, reference: ReferenceTranscripts, *, dtype: str, int8: bool
) -> dict[str, ExportCheck]:
    """Write and check the programs of `export.stablehlo`, with tokens.txt and config.json."""
    config = recognizer.config
    params = jax.device_get(recognizer.params)
    programs = stablehlo.programs(recognizer.graphdef, params, config)
    stablehlo.write(folder, programs, stablehlo.flat(params), config)
    write_config(config, folder / "config.json")
    pieces = enumerate(recognizer.tokenizer.pieces)
    tokens = "".join(f"{piece} {label}\n" for label, piece in pieces)
    (folder / "tokens.txt").write_text(tokens, encoding="utf-8")

    recordings = reference.recordings(sample_rate_hz=config.features.sample_rate_hz)
    written, params = stablehlo.load(folder)
    for name, difference in compare(programs, written, params, recordings, config).items():
        print(f"{name}: within {difference:.1e} of the largest")
        if difference > _LARGEST_DIFFERENCE:
            raise ValueError(
                f"{folder}: outputs of {name}.stablehlo differ from the model's by "
                f"{difference:.1e} of the largest"
            )
    labels = recognized(written["recognize"], params, recordings, config)
    checks = {"float32": reference.compare([recognizer.tokenizer.decode(ids) for ids in labels])}
    if "recognize_chunk" in written:
        texts = [_streamed_text(recognizer, samples) for samples in recordings]
        streamed = reference._replace(texts=texts)
        labels = recognized_as_streams(written, params, recordings, config)
        texts = [recognizer.tokenizer.decode(ids) for ids in labels]
        checks["float32 chunk by chunk"] = streamed.compare(texts)
    for variant, check in checks.items():
        require_equal(check, f"{folder}, {variant}")
    return checks


def _streamed_text(recognizer: Recognizer, samples: np.ndarray) -> str:
    """Return the final text of `asr-jax transcribe --stream`."""
    updates = recognize_stream(recognizer, [samples])
    return " ".join(word.text for update in updates for word in update.final)


class Call(NamedTuple):
    """A call of a program, and the outputs of the model for it."""

    program: str
    arguments: tuple[PyTree, ...]
    outputs: PyTree


def compare(
    programs: dict[str, stablehlo.Program],
    written: dict[str, Callable[..., PyTree]],
    params: stablehlo.Params,
    recordings: Sequence[np.ndarray],
    config: Config,
) -> dict[str, float]:
    """Return the largest difference of each program's outputs from the model's, as a fraction of
    the output's largest magnitude."""
    differences: dict[str, float] = {}
    for call in _calls(programs, params, recordings[:_BATCH], config):
        outputs = jax.device_get(written[call.program](params, *call.arguments))
        pairs = zip(*map(jax.tree.leaves, (outputs, call.outputs)), strict=True)
        largest = max(relative_difference(*pair) for pair in pairs)
        differences[call.program] = max(largest, differences.get(call.program, 0.0))
    return differences


def _calls(
    programs: dict[str, stablehlo.Program],
    params: stablehlo.Params,
    recordings: Sequence[np.ndarray],
    config: Config,
) -> Iterator[Call]:
    """Yield the calls of a search and of streams, which cover all programs but `recognize`."""

    def call(name: str, *arguments: PyTree) -> Call:
        outputs = jax.jit(programs[name].call)(params, *arguments)
        return Call(name, arguments, jax.device_get(outputs))

    samples, lengths = padded(recordings, config)
    encode = call("encode", samples, lengths)
    yield encode
    if "join" in programs:
        start = call("start", lengths)
        step = call("step", start.outputs[0], np.ones_like(lengths))
        join = call("join", encode.outputs[0][:, 0], step.outputs[1])
        yield from (start, step, join)
    if "recognize_chunk" in programs:
        start = call("start_stream", lengths)
        yield start
        state = start.outputs
        for chunk in chunks(recordings, config):
            recognize_chunk = call("recognize_chunk", state, *chunk)
            yield from (call("encode_chunk", state, *chunk), recognize_chunk)
            state = recognize_chunk.outputs[0]


def recognized(
    recognize: Callable[..., PyTree],
    params: stablehlo.Params,
    recordings: Sequence[np.ndarray],
    config: Config,
) -> list[list[int]]:
    """Return the labels of every recording, recognized in batches."""
    labels_of_all = []
    for first in range(0, len(recordings), _BATCH):
        samples, lengths = padded(recordings[first : first + _BATCH], config)
        labels, counts, _ = jax.device_get(recognize(params, samples, lengths))
        labels_of_all += [row[:count].tolist() for row, count in zip(labels, counts)]
    return labels_of_all


def recognized_as_streams(
    written: dict[str, Callable[..., PyTree]],
    params: stablehlo.Params,
    recordings: Sequence[np.ndarray],
    config: Config,
) -> list[list[int]]:
    """Return the labels of every recording, recognized chunk by chunk in batches."""
    labels_of_all = []
    for first in range(0, len(recordings), _BATCH):
        batch = recordings[first : first + _BATCH]
        state = written["start_stream"](params, np.zeros(len(batch), np.int32))
        rows = [[] for _ in batch]
        for chunk in chunks(batch, config):
            state, *emitted = written["recognize_chunk"](params, state, *chunk)
            labels, counts, _ = jax.device_get(emitted)
            for row, chunk_labels, count in zip(rows, labels, counts):
                row += chunk_labels[:count].tolist()
        labels_of_all += rows
    return labels_of_all


def chunks(
    recordings: Sequence[np.ndarray], config: Config
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield successive arguments of `recognize_chunk`: samples [B, S] and their lengths."""
    size, hop = chunk_samples(config), hop_samples(config.features)
    step, first = chunk_features(config) * hop, start_samples(config)
    samples, lengths = padded(recordings, config)
    # What stands before the stream, and the rest of its last chunk.
    samples = np.pad(samples, ((0, 0), (first, size)))
    for start in range(0, lengths.max() + config.encoder.subsampling_lead * hop, step):
        yield samples[:, start : start + size], np.clip(lengths + first - start, 0, size)


def padded(recordings: Sequence[np.ndarray], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return samples [B, S] and their lengths; S is a multiple, not 0, of the encoded frame."""
    lengths = np.array([*map(len, recordings)], np.int32)
    frame = stablehlo.frame_samples(config)
    size = max(1, -(-lengths.max() // frame)) * frame
    samples = np.zeros((len(recordings), size), np.float32)
    for row, recording in zip(samples, recordings):
        row[: len(recording)] = recording
    return samples, lengths
