"""`asr-jax export --format stablehlo`: programs for JAX alone, run and compared."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from asr_jax.commands.export.check import ReferenceTranscripts, require_equal
from asr_jax.commands.transcribe_stream import recognize_stream
from asr_jax.config import Config
from asr_jax.config_file import write_config
from asr_jax.decoding.stream import chunk_samples
from asr_jax.errors import UsageError
from asr_jax.export import stablehlo
from asr_jax.export.difference import relative_difference
from asr_jax.export.model_card import ExportCheck
from asr_jax.features.frames import hop_samples
from asr_jax.inference.recognizer import Recognizer, with_decoding
from asr_jax.text import collapse_white_space

# The same operations, compiled for other shapes: sums may be taken in another order.
_LARGEST_DIFFERENCE = 1e-4
# Recordings that are recognised at a time, padded to one length.
_BATCH = 8

FORM = "programs for JAX (StableHLO)"
_USE = """
    pip install jax flatbuffers

and the script of asr_jax's docs/export.md:

    python recognize.py {name} recording.wav
"""


def usage(name: str, config: Config) -> str:
    """How to run the folder, for its model card."""
    return _USE.format(name=name)


def prepared(recognizer: Recognizer, *, dtype: str, int8: bool) -> Recognizer:
    """The run, hearing recordings whole, as the programs do. All but attention models will do."""
    kind = recognizer.config.objective.kind
    if kind == "attention":
        raise UsageError(f"--format stablehlo: objective.kind = {kind!r} is not exported")
    if dtype != "float32" or int8:
        raise UsageError("--format stablehlo: its programs compute with float32 parameters")
    return with_decoding(recognizer, window_seconds=0.0)


def write(
    folder: Path, recognizer: Recognizer, reference: ReferenceTranscripts, *, dtype: str, int8: bool
) -> dict[str, ExportCheck]:
    """The programs of `export.stablehlo`, their parameters, tokens.txt and config.json."""
    config = recognizer.config
    params = jax.device_get(recognizer.params)
    programs = stablehlo.programs(recognizer.graphdef, params, config)
    stablehlo.write(folder, programs, stablehlo.flat(params), config)
    write_config(config, folder / "config.json")
    pieces = enumerate(recognizer.tokenizer.pieces)
    (folder / "tokens.txt").write_text("".join(f"{piece} {label}\n" for label, piece in pieces))

    recordings = reference.recordings(sample_rate_hz=config.features.sample_rate_hz)
    written, params = stablehlo.load(folder)
    for name, difference in compare(programs, written, params, recordings, config).items():
        print(f"{name}: within {difference:.1e} of the largest")
        if difference > _LARGEST_DIFFERENCE:
            raise ValueError(
                f"{folder}: what {name}.stablehlo computes differs from the model by "
                f"{difference:.1e} of the largest"
            )
    labels = recognized(written["recognize"], params, recordings, config)
    checks = {"float32": reference.compare([recognizer.tokenizer.decode(ids) for ids in labels])}
    if "recognize_chunk" in written:
        in_process = reference._replace(texts=[_of_stream(recognizer, one) for one in recordings])
        labels = recognized_as_streams(written, params, recordings, config)
        texts = [collapse_white_space(recognizer.tokenizer.decode(ids)) for ids in labels]
        checks["float32 chunk by chunk"] = in_process.compare(texts)
    for variant, check in checks.items():
        require_equal(check, f"{folder}, {variant}")
    return checks


def _of_stream(recognizer: Recognizer, samples: np.ndarray) -> str:
    """What `asr-jax transcribe --stream` finds."""
    heard = recognize_stream(recognizer, [samples])
    return " ".join(word.text for one in heard for word in one.final)


def compare(
    programs: dict[str, stablehlo.Program],
    written: dict[str, Callable[..., Any]],
    params: dict[str, np.ndarray],
    recordings: Sequence[np.ndarray],
    config: Config,
) -> dict[str, float]:
    """How far what was written is from the functions that it was written of, by name: the largest
    difference of the outputs, as a share of the largest of these."""
    samples, lengths = padded(recordings[:_BATCH], config)
    differences = {}

    def run(name: str, *arguments: Any) -> Any:
        expected = jax.device_get(jax.jit(programs[name].call)(params, *arguments))
        found = jax.device_get(written[name](params, *arguments))
        pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
        largest = max(relative_difference(*pair) for pair in pairs)
        differences[name] = max(largest, differences.get(name, 0))
        return expected

    encoded, _ = run("encode", samples, lengths)
    if "join" in programs:
        state, _ = run("start", lengths)
        _, predicted = run("step", state, np.ones_like(lengths))
        run("join", encoded[:, 0], predicted)
    if "recognize_chunk" in programs:
        state = run("start_stream", lengths)
        for chunk in chunks(recordings[:_BATCH], config):
            run("encode_chunk", state, *chunk)
            state, *_ = run("recognize_chunk", state, *chunk)
    return differences


def recognized(
    recognize: Callable[..., Any],
    params: dict[str, np.ndarray],
    recordings: Sequence[np.ndarray],
    config: Config,
) -> list[list[int]]:
    """The labels of every recording, of which some are recognised at a time."""
    found = []
    for first in range(0, len(recordings), _BATCH):
        samples, lengths = padded(recordings[first : first + _BATCH], config)
        labels, counts, _ = jax.device_get(recognize(params, samples, lengths))
        found += [row[:count].tolist() for row, count in zip(labels, counts)]
    return found


def recognized_as_streams(
    written: dict[str, Callable[..., Any]],
    params: dict[str, np.ndarray],
    recordings: Sequence[np.ndarray],
    config: Config,
) -> list[list[int]]:
    """The same chunk by chunk, streams side by side."""
    found = []
    for first in range(0, len(recordings), _BATCH):
        of_batch = recordings[first : first + _BATCH]
        state = written["start_stream"](params, np.zeros(len(of_batch), np.int32))
        rows = [[] for _ in of_batch]
        for chunk in chunks(of_batch, config):
            state, *emitted = written["recognize_chunk"](params, state, *chunk)
            labels, counts, _ = jax.device_get(emitted)
            for row, of_row, count in zip(rows, labels, counts):
                row += of_row[:count].tolist()
        found += rows
    return found


def chunks(
    recordings: Sequence[np.ndarray], config: Config
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What `recognize_chunk` is given, one after the other: samples [B, S] and their lengths."""
    size, hop = chunk_samples(config), hop_samples(config.features)
    samples, lengths = padded(recordings, config)
    # A hop before the stream, and what may be wanted behind it.
    samples = np.pad(samples, ((0, 0), (hop, size)))
    for start in range(0, lengths.max(), size - 2 * hop):
        here = np.clip(lengths + hop - start, 0, size)
        yield samples[:, start : start + size], here


def padded(recordings: Sequence[np.ndarray], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Samples [B, S] and their lengths, S being a whole number of encoded frames."""
    lengths = np.array([*map(len, recordings)], np.int32)
    whole = stablehlo.frame_samples(config)
    samples = np.zeros((len(recordings), -(-lengths.max() // whole) * whole), np.float32)
    for row, recording in zip(samples, recordings):
        row[: len(recording)] = recording
    return samples, lengths
