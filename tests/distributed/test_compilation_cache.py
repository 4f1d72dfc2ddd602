"""Compiled programs survive a restart, and truncated ones do not."""

import os

import jax
import numpy as np
import pytest

from asr_jax.distributed.compilation_cache import persistent_compilation


@pytest.fixture(autouse=True)
def keep_programs_that_compile_fast():
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def compile_and_run(constant):
    doubled = jax.jit(lambda x: constant * x).lower(np.float32(3)).compile()
    assert doubled(np.float32(3)) == 3 * constant


def programs(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*-cache")}


def test_second_start_compiles_nothing_and_deletes_truncated_programs(tmp_path):
    folder = tmp_path / "run/compiled"
    with persistent_compilation(folder) as mark_complete:
        compile_and_run(2)
        mark_complete()
    kept = programs(folder)
    assert kept

    with persistent_compilation(folder):
        compile_and_run(2)
        assert programs(folder) == kept
        compile_and_run(5)
        new = programs(folder).keys() - kept.keys()
        assert new
    # As after a process killed while it wrote these, which JAX would never replace.
    for name in new:
        (folder / name).write_bytes(b"half")

    with persistent_compilation(folder):
        assert programs(folder) == kept
        compile_and_run(5)
        assert programs(folder).keys() == kept.keys() | new


def test_cache_that_the_user_chose_is_left_alone(tmp_path):
    chosen = str(tmp_path / "chosen")
    jax.config.update("jax_compilation_cache_dir", chosen)
    try:
        with persistent_compilation(tmp_path / "compiled"):
            assert jax.config.jax_compilation_cache_dir == chosen
        assert jax.config.jax_compilation_cache_dir == chosen
        assert not os.path.exists(tmp_path / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
