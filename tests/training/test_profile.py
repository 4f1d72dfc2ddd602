"""Which steps are profiled, and where the profile is written."""

import contextlib

import jax.numpy as jnp
import pytest

from asr_jax.training.profile import recorded_steps


@pytest.mark.parametrize("number_of_steps", [3, 6])
def test_steps_are_profiled_once_even_if_the_run_ends_among_them(tmp_path, number_of_steps):
    notes = []
    with recorded_steps((2, 3), tmp_path, note=notes.append) as record:
        for step in range(1, number_of_steps + 1):
            with record(step):
                jnp.ones(8).sum().block_until_ready()
    (profile,) = tmp_path.rglob("*.xplane.pb")
    assert b"train" in profile.read_bytes()
    assert len(notes) == 1 and str(tmp_path) in notes[0]


def test_nothing_is_profiled_by_default(tmp_path):
    with recorded_steps(None, tmp_path, note=print) as record, contextlib.ExitStack() as stack:
        stack.enter_context(record(1))
    assert not list(tmp_path.iterdir())
