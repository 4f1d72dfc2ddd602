"""`asr-jax export --format sherpa-onnx`: write a folder for sherpa-onnx and check it."""

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from asr_jax.audio.samples import as_wav
from asr_jax.commands.export.check import ReferenceTranscripts, require_equal
from asr_jax.config import Config
from asr_jax.errors import UsageError
from asr_jax.export import sherpa_onnx
from asr_jax.export.model_card import ExportCheck
from asr_jax.export.onnx_check import OnnxCheck, compare, open_runtime
from asr_jax.features.frames import hop_samples
from asr_jax.inference.recognizer import Recognizer, recognize_utterances, with_decoding
from asr_jax.text import collapse_white_space
from asr_jax.types import InMemory

# Models of up to 36 blocks differed by 2e-6; a wrong graph differs by a fraction near 1.
_LARGEST_DIFFERENCE = 1e-4
# sherpa-onnx computes the features itself, with other rounding errors.
_EQUAL_TRANSCRIPTS = 0.99

# sherpa-onnx's names of the layouts.
MODEL_TYPES = {"icefall": "transducer", "nemo": "nemo_transducer"}

_SILENCE_SECONDS = 1

FORM = "ONNX files for sherpa-onnx"
_USE_OF_STREAMS = """
    pip install sherpa-onnx

    import sherpa_onnx

    recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(
        encoder="{name}/encoder.onnx", decoder="{name}/decoder.onnx",
        joiner="{name}/joiner.onnx", tokens="{name}/tokens.txt",
    )

and the script in docs/export.md of asr_jax.
"""
_USE = """
    pip install sherpa-onnx soundfile

    import sherpa_onnx, soundfile

    recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
        encoder="{name}/encoder.onnx", decoder="{name}/decoder.onnx",
        joiner="{name}/joiner.onnx", tokens="{name}/tokens.txt",
        model_type="{model_type}",
    )
    stream = recognizer.create_stream()
    samples, rate_hz = soundfile.read("recording.flac", dtype="float32")
    stream.accept_waveform(rate_hz, samples)
    recognizer.decode_stream(stream)
    print(stream.result.text)
"""


def usage(name: str, config: Config) -> str:
    """Return how to run the folder, for its model card."""
    use = _USE_OF_STREAMS if config.decoding.chunk_ms else _USE
    return use.format(name=name, model_type=MODEL_TYPES[sherpa_onnx.layout(config)])


def prepared(recognizer: Recognizer, *, dtype: str, int8: bool) -> Recognizer:
    """Return the run with sherpa-onnx's search; raise ValueError if sherpa-onnx cannot run it."""
    if dtype != "float32":
        raise UsageError(
            f"--dtype {dtype}: sherpa-onnx computes in float32; for size, pass --quantize int8"
        )
    bound = sherpa_onnx.max_symbols_per_frame(recognizer.config)
    return with_decoding(recognizer, max_symbols_per_frame=bound, beam=0, window_seconds=0.0)


def write(
    folder: Path, recognizer: Recognizer, reference: ReferenceTranscripts, *, dtype: str, int8: bool
) -> dict[str, ExportCheck]:
    """Write the files of `export.sherpa_onnx` and check them with onnxruntime, and with sherpa-onnx
    if it is installed."""
    config = recognizer.config
    if config.decoding.chunk_ms:
        reference = _followed_by_silence(reference, recognizer)
    sherpa_onnx.write(folder, config, jax.device_get(recognizer.params), recognizer.tokenizer)
    if int8:
        sherpa_onnx.quantize(folder)
    installed = importlib.util.find_spec("sherpa_onnx") is not None
    if not installed:
        print("sherpa-onnx is not installed: checked with onnxruntime only", file=sys.stderr)
    recordings = reference.recordings(sample_rate_hz=config.features.sample_rate_hz)
    checks = {}
    for variant, suffix in [("float32", ""), *([("int8", ".int8")] if int8 else [])]:
        onnx_check = _check_in_onnxruntime(folder, suffix, recognizer, recordings)
        check = reference.compare([recognizer.tokenizer.decode(ids) for ids in onnx_check.labels])
        print(
            f"{variant}: encoder output within {onnx_check.encoded:.1e}, logits within "
            f"{onnx_check.logits:.1e} of the largest"
        )
        if variant == "float32":
            _require_close(onnx_check, folder)
            require_equal(check, f"{folder}, in onnxruntime")
        if installed:
            check = reference.compare(transcripts(folder, suffix, recordings, config))
            if variant == "float32":
                require_equal(check, f"{folder}, in sherpa-onnx", fraction=_EQUAL_TRANSCRIPTS)
        checks[variant] = check
    return checks


def _check_in_onnxruntime(
    folder: Path, suffix: str, recognizer: Recognizer, recordings: Sequence[np.ndarray]
) -> OnnxCheck:
    """Run the files with that suffix and compare them with the model."""
    config, vocabulary = recognizer.config, recognizer.tokenizer.vocabulary_size
    runtime = open_runtime(folder, config, suffix=suffix, vocabulary=vocabulary)
    model = (recognizer.graphdef, recognizer.params, config)
    return compare(runtime, *model, recordings, vocabulary=vocabulary)


def _require_close(check: OnnxCheck, folder: Path) -> None:
    """Raise ValueError if onnxruntime's outputs differ from the model's."""
    if max(check.encoded, check.logits) > _LARGEST_DIFFERENCE:
        raise ValueError(
            f"{folder}: outputs of onnxruntime differ from the model's by "
            f"{check.encoded:.1e} (encoder) and {check.logits:.1e} (logits) of the largest"
        )


def transcripts(
    folder: Path, suffix: str, recordings: Sequence[np.ndarray], config: Config
) -> list[str]:
    """Transcribe recordings at the features' sample rate with sherpa-onnx's greedy search."""
    import sherpa_onnx as runtime  # pyright: ignore[reportMissingImports]

    if config.decoding.chunk_ms:
        return _stream_transcripts(folder, suffix, recordings, config)
    recognizer = runtime.OfflineRecognizer.from_transducer(
        **{part: str(folder / f"{part}{suffix}.onnx") for part in sherpa_onnx.PARTS},
        tokens=str(folder / "tokens.txt"),
        model_type=MODEL_TYPES[sherpa_onnx.layout(config)],
    )
    texts = []
    for samples in recordings:
        stream = recognizer.create_stream()
        stream.accept_waveform(config.features.sample_rate_hz, samples)
        recognizer.decode_stream(stream)
        texts.append(collapse_white_space(stream.result.text))
    return texts


def _stream_transcripts(
    folder: Path, suffix: str, recordings: Sequence[np.ndarray], config: Config
) -> list[str]:
    import sherpa_onnx as runtime  # pyright: ignore[reportMissingImports]

    recognizer = runtime.OnlineRecognizer.from_transducer(
        **{part: str(folder / f"{part}{suffix}.onnx") for part in sherpa_onnx.PARTS},
        tokens=str(folder / "tokens.txt"),
    )
    rate_hz = config.features.sample_rate_hz
    # sherpa-onnx starts a chunk when there are more features than it needs.
    silence = np.zeros(2 * hop_samples(config.features), np.float32)
    texts = []
    for samples in recordings:
        stream = recognizer.create_stream()
        stream.accept_waveform(rate_hz, np.concatenate([samples, silence]))
        stream.input_finished()
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
        texts.append(collapse_white_space(recognizer.get_result(stream)))
    return texts


def _followed_by_silence(
    reference: ReferenceTranscripts, recognizer: Recognizer
) -> ReferenceTranscripts:
    """Append silence to the recordings, and transcribe them with the run again.

    Each recording then ends with a full chunk; sherpa-onnx recognizes no others.
    """
    features = recognizer.config.features
    chunk = round(recognizer.config.decoding.chunk_ms / features.hop_ms) * hop_samples(features)
    rate_hz = features.sample_rate_hz
    utterances = []
    recordings = reference.recordings(sample_rate_hz=rate_hz)
    for utterance, samples in zip(reference.utterances, recordings):
        silence = _SILENCE_SECONDS * rate_hz
        silence += -(len(samples) + silence) % chunk
        samples = np.pad(samples, (0, silence))
        wav = InMemory(as_wav(samples, rate_hz))
        seconds = len(samples) / rate_hz
        utterances.append(
            utterance._replace(duration_seconds=seconds, offset_seconds=0.0, within=wav)
        )
    texts = recognize_utterances(recognizer, utterances).texts
    return ReferenceTranscripts(reference.data, utterances, [text or "" for text in texts])
