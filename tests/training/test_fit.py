"""What fits, found from a step's memory, and what a compiled program sends, against known ones."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from asr_jax.training.collectives import collectives
from asr_jax.training.fit import BucketFit, largest_batch

STATE_BYTES, LIMIT_BYTES = 1000, 100_000.0


def bucket(utterances: int, *, memory_of, compiler_gives_up: bool) -> BucketFit:
    memory = memory_of(utterances)
    fits = memory <= LIMIT_BYTES
    gone = compiler_gives_up and not fits
    return BucketFit(
        seconds=1.0,
        labels=1,
        utterances=utterances,
        parameters_bytes=400,
        optimizer_bytes=STATE_BYTES - 400,
        activations_bytes=0,
        temporary_bytes=None if gone else memory - STATE_BYTES,
        memory_bytes=None if gone else memory,
        limit_bytes=LIMIT_BYTES,
        fits=fits,
        model_flops=0,
        collectives={},
        least_step_seconds=None,
    )


GROWTH = {
    "even": lambda rows: STATE_BYTES + 70 * rows,
    "uneven": lambda rows: STATE_BYTES + 60 * rows + int(3000 * math.sin(rows)),
    "steeper": lambda rows: STATE_BYTES + 5 * rows + rows * rows // 50,
    "steep": lambda rows: STATE_BYTES + 7000 * rows,
    "too steep": lambda rows: STATE_BYTES + 200_000 * rows,
}


@pytest.mark.parametrize("compiler_gives_up", [False, True])
@pytest.mark.parametrize("start", [8, 64, 30_000])
@pytest.mark.parametrize("growth", GROWTH)
def test_the_largest_batch_fills_the_memory(growth, start, compiler_gives_up):
    tries = []

    def fit(rows):
        tries.append(rows)
        return bucket(rows, memory_of=GROWTH[growth], compiler_gives_up=compiler_gives_up)

    unit = 4
    found = largest_batch(fit, start=start, unit=unit)
    assert all(rows % unit == 0 for rows in tries)
    assert len(set(tries)) == len(tries) <= 16
    if GROWTH[growth](unit) > LIMIT_BYTES:
        assert not found.fits and found.utterances == min(tries)
    else:
        assert found.fits
        more = GROWTH[growth](found.utterances + unit)
        assert (found.memory_bytes or 0) >= 0.85 * LIMIT_BYTES or more > LIMIT_BYTES


def test_collectives_of_a_program_are_those_that_it_was_written_with():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    def program(x):
        def body(carry, _):
            return jnp.sin(jax.lax.psum(carry, "x")), None

        summed, _ = jax.lax.scan(body, x, None, length=5)
        return jnp.sum(jax.lax.all_gather(jnp.cos(summed), "x"), 0)

    compiled = jax.jit(program).lower(jax.ShapeDtypeStruct((8 * 30, 7), np.float32)).compile()
    found = collectives(compiled.as_text() or "")
    one = 30 * 7 * 4
    assert found == {"all-reduce": (5, 5 * one), "all-gather": (1, 8 * one)}


def test_waiting_elsewhere_changes_no_count():
    program = """
ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %a = (bf16[4,8]{1,0:T(8,128)}, bf16[16,8]{1,0:T(8,128)}) all-gather-start(%p), dimensions={0}
  %b = bf16[16,8]{1,0} all-gather-done(%a)
  %c = (f32[4,8]{1,0}, f32[2]{0}) all-reduce-start(%p, %q), to_apply=%add
  %e = ((f32[4,8]{1,0}), f32[4,8]{1,0}) all-reduce-start(%p), to_apply=%add
  %d = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%r)
}
"""
    assert collectives(program) == {
        "all-gather": (1, 256),
        "all-reduce": (2, 136 + 128),
        "collective-permute": (1, 16),
    }
