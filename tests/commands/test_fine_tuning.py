"""`train --init-from`: the parameters that a run starts with, and errors that prevent a start."""

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
from asr_jax.training.frozen_storage import joined

TRANSCRIPTS = ("null", "wie sonne", "three", "two")


def state_at(run, step):
    with ocp.training.Checkpointer(run / "checkpoints") as checkpointer:
        saved = checkpointer.metadata(step).metadata
        state = checkpointer.load(step, on_one_device(saved))
    frozen = run / "frozen"
    once = ocp.load(frozen, on_one_device(ocp.metadata(frozen).metadata))
    return state | {name: joined(state[name], once) for name in ("params", "averaged")}


def on_one_device(saved):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), saved)


@pytest.fixture(scope="module")
def fine_tuned(trained, command, tmp_path_factory):
    """Two runs with other letters and a frozen encoder: one uninterrupted, one stopped.

    (uninterrupted run, stopped run, source, options)
    """
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
    uninterrupted = start(folder / "uninterrupted")
    assert uninterrupted.status == 0, uninterrupted.err
    assert "starting from" in uninterrupted.err
    assert "10 of 14 pieces are in its tokenizer" in uninterrupted.err
    with signalled(signal.SIGTERM, after_step=1):
        assert start(folder / "stopped").status == 128 + signal.SIGTERM
    shutil.rmtree(source)
    again = start(folder / "stopped")
    assert again.status == 0 and "resuming from step 2 of 4" in again.err
    return folder / "uninterrupted", folder / "stopped", given, options


@pytest.mark.slow
def test_run_starts_with_averaged_parameters_and_rows_of_known_pieces(fine_tuned):
    run, _, given, _ = fine_tuned
    first = state_at(run, 0)["params"]
    jax.tree.map(np.testing.assert_array_equal, first["encoder"], given.params["encoder"])
    pieces, old_pieces = Tokenizer.load(run / "tokenizer.model").pieces, given.tokenizer.pieces
    known = {n: old_pieces.index(p) for n, p in enumerate(pieces) if p in old_pieces}
    for part, name in [("predictor", "embedding"), ("joint", "out"), ("ctc_head", None)]:
        rows, old = ((tree[part][name] if name else tree[part]) for tree in (first, given.params))
        rows, old = (
            tree["embedding"] if name == "embedding" else tree["kernel"].T for tree in (rows, old)
        )
        for n in range(len(pieces)):
            assert np.array_equal(rows[n], old[known.get(n, n)]) == (n in known)
    record = json.loads((run / "init_from.json").read_text())
    assert record["checkpoint"] == "best (2)"
    assert record["pieces_drawn"] == [piece for piece in pieces if piece not in old_pieces]


@pytest.mark.slow
def test_frozen_parameters_and_their_averages_keep_their_bits(fine_tuned):
    run, _, given, _ = fine_tuned
    last = state_at(run, 4)
    for tree in (last["params"], last["averaged"]):
        jax.tree.map(np.testing.assert_array_equal, tree["encoder"], given.params["encoder"])
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(
            *map(
                jax.tree.leaves,
                [
                    {k: v for k, v in tree.items() if k != "encoder"}
                    for tree in (last["params"], state_at(run, 0)["params"])
                ],
            )
        )
    ]
    assert all(moved)


@pytest.mark.slow
def test_resumed_equals_never_stopped_without_the_source(fine_tuned):
    uninterrupted, stopped = (state_at(run, 4) for run in fine_tuned[:2])
    bits = lambda x: (
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(bits(a), bits(b)), uninterrupted, stopped
    )


def test_run_that_started_from_another_source_is_rejected(error, trained):
    options = ["train", trained.config, "--run", trained.run, *trained.arguments[4:]]
    assert "started with random parameters and has checkpoints" in error(
        *options, "--init-from", "x"
    )


def test_differences_are_listed_and_leave_no_run(error, trained, tmp_path):
    start = ["train", trained.config, "--run", tmp_path / "run", f"--data.train={trained.data}"]
    start += ["--init-from", trained.run]
    changes = ["--encoder.heads=4", "--encoder.layers=2", "--predictor.width=8"]
    message = error(*start, *changes, "--encoder.convolution-norm=affine")
    assert message.startswith(f"--init-from {trained.run}: does not fit the config: ")
    assert "encoder.heads is 2 in the source, 4 in the config" in message
    assert "encoder.layers is 1 in the source, 2 in the config" in message
    assert "encoder.convolution_norm is layer in the source, affine in the config" in message
    kernel = "encoder.blocks.attention.key.kernel"
    assert f"{kernel} is (1, 16, 16) in the source, (2, 16, 16) in the config" in message
    assert "; and " in message
    assert error(*start[:-1], tmp_path) == (
        f"--init-from {tmp_path}: {tmp_path}: not a run directory, it has no config.json"
    )
    assert "matches no parameter" in error(*start, "--optimizer.frozen", "encodr.*")
    # None of these starts made the directory unusable for another config.
    assert not (tmp_path / "run/config.json").exists()


def test_the_source_tokenizer_may_be_used(trained, tmp_path):
    model = trained.run / "tokenizer.model"
    # Training a tokenizer with this many pieces on these transcripts would be an error.
    options = ["--tokenizer.kind=bpe", "--tokenizer.vocabulary-size=9999"]
    options += [f"--data.train={trained.data}", f"--tokenizer.model={model}"]
    _, tokenizer = training_corpus(override(load_config(trained.config), options), tmp_path)
    keep_tokenizer(tmp_path)
    assert tokenizer.model == (tmp_path / "tokenizer.model").read_bytes() == model.read_bytes()


@pytest.mark.slow
def test_adapters_train_a_small_part_and_merge_wherever_the_run_is_read(
    trained, command, error, tmp_path
):
    alone = ("train", trained.config, "--run", tmp_path / "x", f"--data.train={trained.data}")
    assert "adapters are added to a trained model" in error(*alone, "--adapter.rank=2")
    run, given = tmp_path / "run", open_run(trained.run, "best")
    options = ("--init-from", trained.run, "--adapter.rank=2", "--optimizer.trained", "ctc_head.*")
    options += ("--optimizer.peak-learning-rate=0.01", "--train.steps=4", "--checkpoint.keep=9")
    start = ("train", trained.config, "--run", run, *trained.arguments[4:], *options)
    with signalled(signal.SIGTERM, after_step=1):
        assert command(*start).status == 128 + signal.SIGTERM
    assert command(*start).status == 0
    first, last = (state_at(run, step)["params"] for step in (0, 4))
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(last)
    ):
        trains = path[-1].key in ("down", "up") or path[0].key == "ctc_head"
        assert np.array_equal(before, after) != trains, path
    size = lambda folder: sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    whole = size(next(trained.run.glob("checkpoints/[0-9]*")))
    assert size(run / "checkpoints/4") < 0.6 * whole

    merged = open_run(run, "last")
    assert merged.config.adapter.rank == 0
    query = lambda params: params["encoder"]["blocks"]["attention"]["query"]
    adapted = query(state_at(run, 4)["averaged"])
    expected = adapted["kernel"] + adapted["down"] @ adapted["up"]
    np.testing.assert_allclose(query(merged.params)["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert query(merged.params).keys() == query(given.params).keys()
    assert not np.array_equal(query(merged.params)["kernel"], query(given.params)["kernel"])
    exported = command("export", run, tmp_path / "out", "--format", "params")
    assert exported.status == 0 and "6 of 6 transcripts are the run's" in exported.out
    assert load_config(tmp_path / "out/config.json").adapter.rank == 0
    again = ("train", trained.config, "--run", tmp_path / "again", *trained.arguments[4:])
    assert command(*again, "--init-from", run).status == 0
