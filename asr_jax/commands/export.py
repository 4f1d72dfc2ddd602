"""`asr-jax export RUN OUT --format ...`: a model for use without its run, tried and compared."""

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import tyro

from asr_jax.commands.arguments import UsageError, parse, write_config
from asr_jax.commands.devices import prepare_devices
from asr_jax.commands.recognition import EXPORTED, Recognizer, open_run, recognize_utterances
from asr_jax.config import MeshConfig
from asr_jax.data.manifest import read_transcribed
from asr_jax.export.card import Trial, model_card
from asr_jax.scoring.wer import word_error_rate
from asr_jax.types import Utterance


@dataclass(frozen=True, kw_only=True)
class Options:
    """Writes a model, runs it on some recordings and compares; a difference is an error."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write, new or empty."""
    format: Literal["params"]
    """params: for asr_jax itself (docs/export.md)."""
    checkpoint: str = "best"
    """best (by WER on dev), last, a step, or average:N (mean of the newest N)."""
    quantize: Literal["none", "int8"] = "none"
    """int8: matrices in eight bits, with a scale for each channel."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the other parameters."""
    data: str = ""
    """Recordings with transcripts to try it on; data.test, or else data.dev, of the run."""
    recordings: int = 16
    """How many of them, evenly spread."""


class Sample(NamedTuple):
    """Recordings that what is written is tried on, and what the run makes of them."""

    data: str
    utterances: list[Utterance]
    texts: list[str]

    def compare(self, texts: Sequence[str]) -> Trial:
        references = [utterance.text for utterance in self.utterances]
        percent = lambda texts: 100 * word_error_rate(references, texts)
        equal = sum(a == b for a, b in zip(self.texts, texts, strict=True))
        return Trial(self.data, len(texts), percent(self.texts), percent(texts), equal)


def run(arguments: list[str]) -> int:
    options = parse(Options, arguments, program="asr-jax export")
    if options.recordings < 1:
        raise UsageError(f"--recordings {options.recordings}: must be positive")
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UsageError(f"{options.out}: is there already and not empty; choose another folder")
    require_package("safetensors")
    prepare_devices(MeshConfig())
    recognizer = open_run(options.run, options.checkpoint)
    sample = recognized_sample(recognizer, options.data, options.recordings)
    partial = options.out.with_name(options.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    trials = write_params(partial, recognizer, sample, options)
    card = model_card(
        options.run.name,
        recognizer.config,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(recognizer.params)),
        checkpoint=recognizer.checkpoint,
        form=f"parameters, {' and '.join(trials)}",
        trials=trials,
        evaluations=list(read_evaluations(options.run)),
        use=_USE.format(name=options.out.name),
    )
    (partial / "README.md").write_text(card)
    os.replace(partial, options.out)
    for variant, trial in trials.items():
        print(
            f"{options.out}: {variant}: {trial.equal} of {trial.recordings} transcripts are the "
            f"run's; WER {trial.wer_after:.2f} %, the run's {trial.wer_before:.2f} %"
        )
    return 0


_USE = """
    import asr_jax

    model = asr_jax.load("{name}")
    print(model.transcribe("recording.flac")[0].text)

or `asr-jax transcribe {name} recording.flac`.
"""


def require_package(name: str, extra: str = "") -> None:
    """Raises UsageError where the package is not installed, saying how to."""
    if importlib.util.find_spec(name) is None:
        what = f"'asr_jax[{extra}]'" if extra else name
        raise UsageError(f"--format needs the package {name}: pip install {what}")


def recognized_sample(recognizer: Recognizer, data: str, most: int) -> Sample:
    """At most so many recordings that can be read, and the run's transcripts."""
    named = recognizer.config.data
    name, data = next(
        (
            (name, value)
            for name, value in [
                ("--data", data),
                ("data.test", named.test),
                ("data.dev", named.dev),
            ]
            if value
        ),
        ("", ""),
    )
    if not data:
        raise UsageError("the run has neither data.test nor data.dev: say what to try on, --data")
    utterances, _ = read_transcribed(data, name)
    stride = max(1, len(utterances) // most)
    chosen = utterances[::stride][:most]
    recognition = recognize_utterances(recognizer, chosen)
    read = [(u, text) for u, text in zip(chosen, recognition.texts) if text is not None]
    if not read:
        raise UsageError(f"{name} = {data}: none of its recordings can be read")
    return Sample(data, *map(list, zip(*read)))


def write_params(
    folder: Path, recognizer: Recognizer, sample: Sample, options: Options
) -> dict[str, Trial]:
    """model.safetensors, config.json and tokenizer.model; loaded again and tried."""
    from asr_jax.export.params import save_params

    int8 = options.quantize == "int8"
    save_params(
        folder / EXPORTED,
        jax.device_get(recognizer.params),
        dtype=options.dtype,
        int8=int8,
        about={"checkpoint": recognizer.checkpoint},
    )
    write_config(recognizer.config, folder / "config.json")
    (folder / "tokenizer.model").write_bytes(recognizer.tokenizer.model)
    written = open_run(folder, "best")
    trial = sample.compare(recognized(written, sample))
    exact = not int8 and options.dtype == "float32"
    if exact and trial.equal < trial.recordings:
        raise ValueError(f"{folder}: {_differ(trial)}")
    return {"int8" if int8 else options.dtype: trial}


def recognized(recognizer: Recognizer, sample: Sample) -> list[str]:
    texts = recognize_utterances(recognizer, sample.utterances).texts
    return [text or "" for text in texts]


def _differ(trial: Trial) -> str:
    return (
        f"{trial.recordings - trial.equal} of {trial.recordings} transcripts differ from the run's"
    )


def read_evaluations(run: Path) -> list[dict[str, Any]]:
    """What the run's evaluations found; one that cannot be read is left out, and said."""
    found = []
    for path in sorted(run.glob("evaluation/*/wer.json")):
        try:
            figures = json.loads(path.read_text())
            if figures["wer"] is not None:
                found.append(figures)
        except (ValueError, KeyError) as error:
            print(f"{path}: left out of the card: {error}", file=sys.stderr)
    return found
