"""`asr-jax fit`: the memory it prints is the memory that training takes, on any accelerator."""

import json
import os
import subprocess
import sys

import jax
import pytest

from asr_jax.commands import fit as command_fit
from asr_jax.commands.arguments import override
from asr_jax.config_file import load_config
from asr_jax.distributed.mesh import make_mesh
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import initial_state


@pytest.mark.slow
def test_state_bytes_are_those_on_one_device(trained, command, monkeypatch):
    made = []
    really = command_fit.fit_bucket
    keep = lambda *arguments, **options: made.append(really(*arguments, **options)) or made[-1]
    monkeypatch.setattr(command_fit, "fit_bucket", keep)
    split = ("--mesh.data", "2", "--mesh.fsdp", "4")
    outcome = command("fit", trained.config, *split)
    assert outcome.status == 0, outcome.err
    (bucket,) = made

    config = override(load_config(trained.config), split)
    mesh = make_mesh(config.mesh, jax.devices())
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    state = initial_state(config, config.tokenizer.vocabulary_size, optimizer, mesh)
    on_first = lambda tree: sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(tree)
        for shard in leaf.addressable_shards
        if shard.device == jax.devices()[0]
    )
    assert bucket.parameters_bytes == on_first((state.params, state.averaged))
    assert bucket.optimizer_bytes == on_first(state.optimizer)
    # Gradients are summed over the devices; for some arrays, each device gets only its shard.
    gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert sum(amount.bytes for amount in bucket.collectives.values()) >= gradients / 4
    assert bucket.memory_bytes > bucket.temporary_bytes > bucket.activations_bytes > 0

    header, _, row = (line for line in outcome.out.splitlines() if line.startswith("|"))
    columns = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (header, row)]
    table = dict(zip(*columns))
    assert table["fits"] == "yes"
    assert table["utterances"] == "8"


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        ("h300", "must be one of h100, h200, a100-40"),
        ("v5e-0", "must be one of"),
        ("v5e-5", "the number of devices must be one of [1, 4, 8, 16, 32, 64, 128, 256]"),
    ],
)
def test_unknown_targets_are_rejected_in_one_line(trained, error, target, rule):
    assert rule in error("fit", trained.config, "--target", target)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["v5e-8", "h200-8", "a100-40"])
def test_fit_compiles_for_absent_accelerators(target):
    """Run in a separate process: libtpu serves one process at a time."""
    small = "--encoder.layers 2 --data.bucket-seconds 4 --data.bucket-labels 16".split()
    found = subprocess.run(
        [sys.executable, "-m", "asr_jax", "fit", "configs/librispeech_960h_s.py", "--json"]
        + [*small, "--data.bucket-utterances", "32", "--target", target],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    if "its compiler is not installed" in found.stderr:
        pytest.skip(found.stderr.strip())
    assert found.returncode == 0, found.stderr
    (bucket,) = json.loads(found.stdout)
    assert bucket["fits"]
    assert bucket["memory_bytes"] > bucket["temporary_bytes"] > bucket["activations_bytes"] > 0
    assert bucket["least_step_seconds"] > 0
    sent = sum(amount["bytes"] for amount in bucket["collectives"].values())
    if target.endswith("-8"):
        # Gradients are summed over devices once, in float32; the TPU compiler makes it bfloat16.
        assert 0.4 < sent / (bucket["parameters_bytes"] / 2) < 1.1
    else:
        assert sent == 0
