"""Commands run in this process, and one tiny run that all tests share."""

import contextlib
import functools
import io
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from flax import nnx
from tiny import signalled, write_manifest, write_tone

from asr_jax.__main__ import main
from asr_jax.commands import train
from asr_jax.commands.arguments import override
from asr_jax.config_file import load_config, write_config
from asr_jax.experiment import dev_wer
from asr_jax.inference import recognizer
from asr_jax.models.composition import make_model
from asr_jax.text import UNKNOWN_ID, Tokenizer

CONFIG = """
from asr_jax.config import (
    AugmentConfig, CheckpointConfig, Config, DataConfig, EncoderConfig, JointConfig,
    ObjectiveConfig, OptimizerConfig, PredictorConfig, TokenizerConfig, TrainConfig
)

config = Config(
    data=DataConfig(bucket_seconds=(1.0,), bucket_labels=(16,), bucket_utterances=(8,)),
    augment=AugmentConfig(frequency_masks=1, time_masks=1),
    tokenizer=TokenizerConfig(kind="char"),
    encoder=EncoderConfig(layers=1, width=16, heads=2, kernel_frames=3, subsampling="conv1d",
                          subsampling_channels=16, remat="none"),
    predictor=PredictorConfig(embedding_width=8, width=16),
    joint=JointConfig(width=16),
    objective=ObjectiveConfig(ctc_weight=0.3),
    # A tiny rate, so that the model still emits random labels after four steps, not only blanks.
    optimizer=OptimizerConfig(peak_learning_rate=1e-6),
    train=TrainConfig(steps=4, log_every_steps=1, evaluate_every_steps=2),
    checkpoint=CheckpointConfig(every_steps=1),
)
"""
TRANSCRIPTS = ("one", "größer", "zwei drei", "三 四", "naïve five", "six")


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Trained:
    """A run of 4 steps, which SIGTERM stopped after step 3 and the same command then finished."""

    config: Path
    data: Path
    arguments: tuple
    run: Path
    until_stopped: Outcome
    files_when_stopped: set[str] = field(repr=False)
    to_the_end: Outcome


def compiled_once(make: Callable) -> Callable:
    """Call `make` once for each model and shape: half of a tiny run's time is compilation."""
    made = {}

    @functools.wraps(make)
    def make_once(*arguments, **options):
        config = next(a for a in arguments if hasattr(a, "encoder"))
        parts = ("augment", "features", "encoder", "predictor", "joint", "objective", "optimizer")
        parts += ("decoding", "adapter")
        model = [config.train.steps, *(getattr(config, part) for part in parts)]
        graphdef = next(a for a in arguments if type(a).__name__ == "GraphDef")
        rest = [a for a in arguments if isinstance(a, list | jax.sharding.Mesh)]
        key = repr((model, hash(graphdef), rest))
        if key not in made:
            made[key] = make(*arguments, **options)
        return made[key]

    return make_once


@pytest.fixture(scope="session")
def command() -> Callable[..., Outcome]:
    """Run `asr-jax ARGUMENTS ...` in this process; an error with a traceback fails the test.

    Standard output holds any character, or those of `encoding`.
    """
    jitted_decoding = compiled_once(recognizer.jitted_decoding)
    patches = [
        mock.patch.object(train, "compile_steps", compiled_once(train.compile_steps)),
        mock.patch.object(dev_wer, "jitted_decoding", jitted_decoding),
        mock.patch.object(recognizer, "jitted_decoding", jitted_decoding),
    ]

    def run(*arguments: object, encoding: str = "") -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        if encoding:
            out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
        jax.config.update("jax_disable_most_optimizations", True)
        try:
            with contextlib.ExitStack() as stack:
                for patch in patches:
                    stack.enter_context(patch)
                stack.enter_context(
                    mock.patch.object(sys, "argv", ["asr-jax", *map(str, arguments)])
                )
                stack.enter_context(contextlib.redirect_stdout(out))
                stack.enter_context(contextlib.redirect_stderr(err))
                status = main()
        finally:
            jax.config.update("jax_disable_most_optimizations", False)
        if isinstance(out, io.TextIOWrapper):
            out.seek(0)
            return Outcome(status, out.read(), err.getvalue())
        return Outcome(status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def trained(command, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "tiny.py"
    config.write_text(CONFIG)
    recordings = {}
    for n, text in enumerate(TRANSCRIPTS):
        write_tone(folder / f"{n}.flac", 0.4 + 0.05 * n, pitch_hz=200 + 100 * n)
        recordings[f"{n}.flac"] = text
    data = write_manifest(folder / "data.jsonl", recordings)
    run = folder / "run"
    where = [f"--data.{part}={data}" for part in ("train", "dev", "test")]
    arguments = ("train", config, "--run", run, *where)
    with signalled(signal.SIGTERM, after_step=2):
        until_stopped = command(*arguments)
    files = {path.name for path in run.iterdir()}
    return Trained(config, data, arguments, run, until_stopped, files, command(*arguments))


@pytest.fixture(scope="session")
def export_trained(trained, command, tmp_path_factory) -> Callable[..., Path]:
    """Export the trained run with these options; return the folder."""

    def run(*options: str) -> Path:
        out = tmp_path_factory.mktemp("export") / "model"
        outcome = command("export", trained.run, out, *options)
        assert outcome.status == 0, outcome.err
        assert "6 of 6 transcripts are the run's" in outcome.out
        return out

    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of the trained run."""
    return shutil.copytree(trained.run, tmp_path / "run")


@pytest.fixture(scope="session")
def of_streams(trained, tmp_path_factory) -> Path:
    """A random streaming model, in the form that `--format params` writes."""
    from asr_jax.export.params import save_params

    folder = tmp_path_factory.mktemp("streams") / "params"
    folder.mkdir()
    causal = ("--encoder.chunk-ms", "160", "--features.normalization=none")
    data = (f"--data.test={trained.data}", "--objective.ctc-weight=0")
    config = override(load_config(trained.config), [*causal, *data])
    write_config(config, folder / "config.json")
    contents = (trained.run / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(contents)
    model = make_model(config, Tokenizer(contents).vocabulary_size, rngs=nnx.Rngs(0))
    params = jax.device_get(nnx.to_pure_dict(nnx.split(model, nnx.Param)[1]))
    # Weights large enough that labels and blanks alternate; never the unknown piece.
    joint = params["joint"]
    joint["encoder_projection"]["kernel"] = 10 * joint["encoder_projection"]["kernel"]
    joint["out"]["kernel"] = 5 * joint["out"]["kernel"]
    joint["out"]["bias"] = np.where(np.arange(len(joint["out"]["bias"])) == UNKNOWN_ID, -99.0, 0.0)
    about = {"checkpoint": "random"}
    save_params(folder / "model.safetensors", params, dtype="float32", int8=False, about=about)
    return folder


@pytest.fixture(scope="session")
def script_of_docs() -> Callable[[str], str]:
    """Return the script of docs/export.md that contains these words."""
    text = (Path(__file__).resolve().parents[2] / "docs/export.md").read_text()
    scripts = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return lambda words: next(script for script in scripts if words in script)


@pytest.fixture
def error(command) -> Callable[..., str]:
    """Run a command that must fail; return its error message, which must be one line."""

    def run(*arguments: object) -> str:
        outcome = command(*arguments)
        assert outcome.status == 2, outcome
        start = f"asr-jax {arguments[0]}: "
        *before, last = outcome.err.splitlines()
        assert last.startswith(start), outcome.err
        assert not any(line.startswith((start, "Traceback", " ")) for line in before), outcome.err
        return last.removeprefix(start)

    return run
