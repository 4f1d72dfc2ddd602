"""`train --init-from`: what a run begins with, and what keeps it from beginning."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from tiny import signalled, write_manifest, write_tone

from asr_jax.commands.arguments import override
from asr_jax.config_file import load_config
from asr_jax.experiment.corpus import keep_tokenizer, training_corpus
from asr_jax.inference.recognizer import open_run
from asr_jax.text import Tokenizer

TRANSCRIPTS = ("null", "wie sonne", "three", "two")


def state_at(run, step):
    with ocp.training.Checkpointer(run / "checkpoints") as checkpointer:
        saved = checkpointer.metadata(step).metadata
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return checkpointer.load(
            step,
            jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), saved),
        )


@pytest.fixture(scope="module")
def begun(trained, command, tmp_path_factory):
    """(whole, parted, source): two runs with letters of their own and a frozen encoder."""
    folder = tmp_path_factory.mktemp("finetuning")
    recordings = {f"{n}.wav": text for n, text in enumerate(TRANSCRIPTS)}
    for n, name in enumerate(recordings):
        write_tone(folder / name, 0.5, pitch_hz=250 + 100 * n)
    data = write_manifest(folder / "data.jsonl", recordings)
    source = shutil.copytree(trained.run, folder / "source")
    given = open_run(source, "best")
    options = ("--init-from", source, "--optimizer.frozen", "encoder.*", "--data.train", data)
    options += ("--train.steps", 4, "--checkpoint.keep", 9, "--optimizer.peak-learning-rate", 0.01)
    start = lambda run: command("train", trained.config, "--run", run, *options)
    whole = start(folder / "whole")
    assert whole.status == 0, whole.err
    assert "beginning with" in whole.err and "10 of 14 pieces are known there" in whole.err
    with signalled(signal.SIGTERM, after_step=1):
        assert start(folder / "parted").status == 128 + signal.SIGTERM
    shutil.rmtree(source)
    again = start(folder / "parted")
    assert again.status == 0 and "going on from step 2 of 4" in again.err
    return folder / "whole", folder / "parted", given, options


@pytest.mark.slow
def test_it_begins_with_the_averaged_parameters_and_the_rows_of_known_pieces(begun):
    whole, _, given, _ = begun
    first = state_at(whole, 0)["params"]
    jax.tree.map(np.testing.assert_array_equal, first["encoder"], given.params["encoder"])
    here, there = Tokenizer.load(whole / "tokenizer.model").pieces, given.tokenizer.pieces
    known = {n: there.index(piece) for n, piece in enumerate(here) if piece in there}
    for part, name in [("predictor", "embedding"), ("joint", "out"), ("ctc_head", None)]:
        rows, old = ((tree[part][name] if name else tree[part]) for tree in (first, given.params))
        rows, old = (
            tree["embedding"] if name == "embedding" else tree["kernel"].T for tree in (rows, old)
        )
        for n in range(len(here)):
            assert np.array_equal(rows[n], old[known.get(n, n)]) == (n in known)
    record = json.loads((whole / "init_from.json").read_text())
    assert record["checkpoint"] == "best (2)"
    assert record["pieces_drawn"] == [piece for piece in here if piece not in there]


@pytest.mark.slow
def test_frozen_parameters_and_their_averages_keep_their_bits(begun):
    whole, _, given, _ = begun
    last = state_at(whole, 4)
    for tree in (last["params"], last["averaged"]):
        jax.tree.map(np.testing.assert_array_equal, tree["encoder"], given.params["encoder"])
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(
            *map(
                jax.tree.leaves,
                [
                    {k: v for k, v in tree.items() if k != "encoder"}
                    for tree in (last["params"], state_at(whole, 0)["params"])
                ],
            )
        )
    ]
    assert all(moved)


@pytest.mark.slow
def test_it_goes_on_as_if_never_stopped_without_what_it_began_with(begun):
    whole, parted, *_ = begun
    whole, parted = (state_at(run, 4) for run in (whole, parted))
    bits = lambda x: (
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    )
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), whole, parted)


def test_a_run_that_began_otherwise_is_refused(error, trained):
    options = ["train", trained.config, "--run", trained.run, *trained.arguments[4:]]
    assert "began with random parameters and has checkpoints" in error(*options, "--init-from", "x")


def test_what_does_not_fit_is_listed_and_leaves_no_run(error, trained, tmp_path):
    start = ["train", trained.config, "--run", tmp_path / "run", f"--data.train={trained.data}"]
    start += ["--init-from", trained.run]
    found = error(*start, "--encoder.heads=4", "--encoder.layers=2", "--predictor.width=8")
    assert found.startswith(f"--init-from {trained.run}: does not fit the config: ")
    assert "encoder.heads is 2 there, 4 here" in found
    assert "encoder.layers is 1 there, 2 here" in found
    assert "encoder.blocks.attention.key.kernel is (1, 16, 16) there, (2, 16, 16) here" in found
    assert "; and " in found
    assert error(*start[:-1], tmp_path) == (
        f"--init-from {tmp_path}: {tmp_path}: not a run directory, it has no config.json"
    )
    assert "fits no parameter" in error(*start, "--optimizer.frozen", "encodr.*")
    # None of these has left a run that another config could not begin in.
    assert not (tmp_path / "run/config.json").exists()


def test_the_tokenizer_may_be_the_others(trained, tmp_path):
    model = trained.run / "tokenizer.model"
    # Trained on these transcripts, one of so many pieces would be an error.
    options = ["--tokenizer.kind=bpe", "--tokenizer.vocabulary-size=9999"]
    options += [f"--data.train={trained.data}", f"--tokenizer.model={model}"]
    _, tokenizer = training_corpus(override(load_config(trained.config), options), tmp_path)
    keep_tokenizer(tmp_path)
    assert tokenizer.model == (tmp_path / "tokenizer.model").read_bytes() == model.read_bytes()
