"""A language model is trained and fused by the same commands as a recognizer."""

import json
import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp
from tiny import signalled

from asr_jax.inference.recognizer import open_any_run
from asr_jax.text import Tokenizer


def figures(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def saved_state(run, step):
    with ocp.training.Checkpointer(run / "checkpoints") as checkpointer:
        cpu = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=cpu),
            checkpointer.metadata(step).metadata,
        )
        return checkpointer.load(step, abstract)


@pytest.fixture(scope="module")
def texts(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    # The recognizer's tokenizer cannot encode the last line.
    path.write_text("one six\nzwei drei\n\nnaïve one\ngrößer\n" * 5 + "six five one\nQUARTZ\n")
    return path


@pytest.fixture(scope="module")
def start(trained, texts):
    options = {
        "--objective.kind": "language_model",
        "--objective.ctc-weight": 0,
        "--predictor.kind": "lstm",
        "--optimizer.peak-learning-rate": 0.01,
        "--data.train": texts,
        "--data.dev": texts,
    }

    def arguments(changed=()):
        """Return a command line that lacks the value of --tokenizer.model."""
        given = [f"{name}={value}" for name, value in (options | dict(changed)).items()]
        return ["train", trained.config, *given, "--tokenizer.model"]

    return arguments


@pytest.fixture(scope="module")
def language_model(trained, command, start, tmp_path_factory):
    run = tmp_path_factory.mktemp("language_model") / "run"
    outcome = command(*start(), trained.run / "tokenizer.model", "--run", run)
    assert outcome.status == 0, outcome.err
    return run, outcome.err


def test_run_reports_and_logs_perplexities(language_model):
    run, printed = language_model
    lines = "one six", "zwei drei", "naïve one", "größer"
    pieces = 5 * sum(map(len, lines)) + len("six five one")
    assert f"21 utterances, {pieces} pieces" in printed
    assert "left out: 1 utterances, characters that the tokenizer lacks" in printed
    measured = [line for line in figures(run) if "dev_perplexity" in line]
    assert [line["step"] for line in measured] == [2, 4]
    last = measured[-1]
    assert f"step 4: perplexity on dev {last['dev_perplexity']:.2f} per piece" in printed
    assert 1 < last["dev_perplexity"] < last["dev_word_perplexity"]


def test_perplexity_equals_its_definition(language_model, texts):
    run, _ = language_model
    opened = open_any_run(run, "last")
    model, tokenizer = nnx.merge(opened.graphdef, opened.params), opened.tokenizer
    nats = pieces = words = 0
    for text in texts.read_text().splitlines():
        if text and text != "QUARTZ":
            labels = tokenizer.encode(text)
            log_p = jax.nn.log_softmax(model(jnp.array([labels]))[0])
            nats -= float(log_p[jnp.arange(len(labels) + 1), jnp.array([*labels, 0])].sum())
            pieces, words = pieces + len(labels) + 1, words + len(text.split()) + 1
    last = figures(run)[-1]
    assert last["dev_perplexity"] == pytest.approx(math.exp(nats / pieces), rel=1e-5)
    assert last["dev_word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-5)


def test_resumed_equals_never_stopped_bit_for_bit(
    language_model, trained, command, start, tmp_path
):
    uninterrupted, run = language_model[0], tmp_path / "run"
    arguments = [*start(), trained.run / "tokenizer.model", "--run", run]
    with signalled(signal.SIGTERM, after_step=2):
        assert command(*arguments).status == 128 + signal.SIGTERM
    outcome = command(*arguments)
    assert outcome.status == 0 and "resuming from step 3 of 4" in outcome.err
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)),
        saved_state(uninterrupted, 4),
        saved_state(run, 4),
    )
    losses = [[line["loss"] for line in figures(r) if "loss" in line] for r in (uninterrupted, run)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_fusion_with_a_recognizer(language_model, trained, command, tmp_path):
    def scores(*options):
        audio = sorted(trained.run.parent.glob("*.flac"))
        outcome = command(
            "transcribe", trained.run, *audio, "--decoder=beam", "--nbest=1", "--json", *options
        )
        assert outcome.status == 0, outcome.err
        return [json.loads(line)["nbest"][0]["score"] for line in outcome.out.splitlines()]

    run, _ = language_model
    plain = scores()
    # Another program rounds sums of a few dozen float32 logarithms differently.
    without = scores("--language-model", run, "--language-model-weight=0")
    np.testing.assert_allclose(without, plain, rtol=1e-5)
    # Fusion adds logarithms of probabilities, which are negative.
    fused = scores("--language-model", run, "--language-model-weight=0.5")
    assert all(a < b for a, b in zip(fused, plain))
    less = scores("--source-language-model", run, "--source-language-model-weight=0.5")
    assert all(a > b for a, b in zip(less, plain))


def test_language_model_is_rejected_where_a_recognizer_is_needed(
    language_model, trained, error, start, tmp_path
):
    run, _ = language_model
    audio = trained.run.parent / "0.flac"
    for arguments in [
        ("evaluate", run, "--data", trained.data),
        ("transcribe", run, audio),
        ("export", run, tmp_path / "out", "--format=params"),
    ]:
        assert error(*arguments).startswith(f"{run}: a language model, which recognizes nothing")
    fuse = ("transcribe", trained.run, audio, "--decoder=beam", "--language-model")
    assert error("fit", run / "config.json") == (
        "objective.kind = 'language_model': fit supports speech recognizers only"
    )
    assert error(*fuse, trained.run) == (
        f"{trained.run}: objective.kind = 'transducer': must be a language model's run"
    )
    assert error(*fuse, tmp_path) == f"{tmp_path}: not a run directory, it has no config.json"
    other = shutil.copytree(run, tmp_path / "other")
    pieces = open_any_run(run, "last").tokenizer.pieces
    alphabet = "".join(chr(ord("a") + n) for n in range(len(pieces) - 3))
    Tokenizer.train([alphabet], kind="char", vocabulary_size=0, path=other / "tokenizer.model")
    assert error(*fuse, other).startswith(
        f"{other}: its pieces differ from the recognizer's; train"
    )
    begin = [*start(), trained.run / "tokenizer.model", "--run", tmp_path / "new", "--init-from"]
    assert error(*begin, trained.run) == (
        f"--init-from {trained.run}: objective.kind is 'transducer' in the source, "
        "'language_model' in the config"
    )


def test_unusable_texts_are_rejected(trained, error, start, tmp_path):
    path = tmp_path / "some.txt"
    rest = [trained.run / "tokenizer.model", "--run", tmp_path / "run"]
    path.write_text("\n\n")
    assert error(*start({"--data.train": path}), *rest) == f"{path}: holds no text"
    path.write_text("QQ\nXX\n")
    assert error(*start({"--data.train": path}), *rest) == (
        f"data.train = {path}: none of its 2 utterances can be trained on, the first is "
        "some.txt:1: characters that the tokenizer lacks: Q"
    )
    message = error(*start({"--data.dev": path}), *rest)
    assert message.startswith(f"data.dev = {path}: none of its texts")
    for option, value, name in [
        ("--objective.ctc-weight", 0.3, "objective.ctc_weight = 0.3"),
        ("--data.test", path, f"data.test = '{path}'"),
    ]:
        message = error(*start({option: value}), *rest)
        assert message.startswith(f"{name}: a language model has none")
