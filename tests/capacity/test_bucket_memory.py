"""The search for the largest batch that fits, and the collectives of known programs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from asr_jax.capacity.bucket_memory import BucketFit, largest_batch
from asr_jax.capacity.collectives import collectives

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
    largest = largest_batch(fit, start=start, unit=unit)
    assert all(rows % unit == 0 for rows in tries)
    assert len(set(tries)) == len(tries) <= 16
    if GROWTH[growth](unit) > LIMIT_BYTES:
        assert not largest.fits and largest.utterances == min(tries)
    else:
        assert largest.fits
        more = GROWTH[growth](largest.utterances + unit)
        assert (largest.memory_bytes or 0) >= 0.85 * LIMIT_BYTES or more > LIMIT_BYTES


def test_collectives_of_a_program_are_those_of_its_source():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    def program(x):
        def body(carry, _):
            return jnp.sin(jax.lax.psum(carry, "x")), None

        summed, _ = jax.lax.scan(body, x, None, length=5)
        return jnp.sum(jax.lax.all_gather(jnp.cos(summed), "x"), 0)

    compiled = jax.jit(program).lower(jax.ShapeDtypeStruct((8 * 30, 7), np.float32)).compile()
    counted = collectives(compiled.as_text() or "")
    one = 30 * 7 * 4
    assert counted == {"all-reduce": (5, 5 * one), "all-gather": (1, 8 * one)}


@pytest.mark.parametrize(
    "compared, rounds",
    [
        ("compare(%i, %n), direction=LT", 16),
        ("compare(s32[]{:T(128)} %i, s32[]{:T(128)} %n), direction=LT", 16),
        ("compare(%i, %given), direction=LT", 1),  # depends on the batch
        ("and(%p, %q)", 1),
    ],
)
def test_rounds_of_a_loop_are_read_from_its_condition(compared, rounds):
    """The TPU compiler writes loops without their trip count."""
    program = f"""
%cond.clone (state: (s32[], f32[8])) -> pred[] {{
  %m = s32[]{{:T(128)}} constant(7)
  %n = s32[]{{:T(128)}} constant(16)
  %state = (s32[]{{:T(128)}}, f32[8]{{0}}, s32[]) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %given = s32[]{{:T(128)}} get-tuple-element(%state), index=2
  ROOT %lt.1 = pred[]{{:T(512)}} {compared}, metadata={{op_name="jit(step)/while/cond/lt"}}
}}
%body.clone (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %sum = f32[8]{{0}} all-reduce(%x), to_apply=%add
  %inner = (s32[], f32[8]{{0}}) while(%u), condition=%known, body=%inner_body, backend_config={{"known_trip_count":{{"n":"3"}}}}
}}
%inner_body (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %whole = f32[16]{{0}} all-gather(%x), dimensions={{0}}
}}
ENTRY %main (p: f32[8]) -> f32[8] {{
  %w.2 = (s32[]{{:T(128)}}, f32[8]{{0}}) while(%t), condition=%cond.clone, body=%body.clone, metadata={{}}
}}
"""  # noqa: E501
    assert collectives(program) == {
        "all-reduce": (rounds, 32 * rounds),
        "all-gather": (3 * rounds, 3 * 64 * rounds),
    }


def test_pieces_of_a_collective_count_as_one():
    """The TPU compiler overlaps a collective with other work: start, pieces in a loop, end."""
    gather = "all-gather(%x), channel_id=84, dimensions={0}"
    program = f"""
%begin (x: f32[8]) -> f32[16] {{
  ROOT %a = f32[16]{{0}} {gather}
}}
%go_on (x: f32[8]) -> f32[16] {{
  ROOT %b = f32[16]{{0:S(1)}} {gather}
}}
%each_round (x: f32[8]) -> f32[4] {{
  ROOT %c = f32[4]{{0}} all-gather(%x), channel_id=85, dimensions={{0}}
}}
%end (x: f32[8]) -> f32[16] {{
  ROOT %d = f32[16]{{0}} {gather}
}}
%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %e = f32[16]{{0}} fusion(%x), kind=kCustom, calls=%go_on
  %f = f32[16]{{0}} fusion(%e), kind=kCustom, calls=%go_on
  %g = f32[4]{{0}} fusion(%x), kind=kCustom, calls=%each_round
}}
ENTRY %main (p: f32[8]) -> f32[8] {{
  %h = f32[16]{{0}} fusion(%p), kind=kCustom, calls=%begin
  %w = (s32[], f32[8]{{0}}) while(%t), body=%body, backend_config={{"known_trip_count":{{"n":"9"}}}}
  %i = f32[16]{{0}} fusion(%w), kind=kCustom, calls=%end
  %j = f32[2]{{0}} collective-permute(%p), channel_id=1
  %k = f32[2]{{0}} collective-permute(%p), channel_id=1
}}
"""
    assert collectives(program) == {"all-gather": (10, 64 + 9 * 16), "collective-permute": (2, 16)}


def test_asynchronous_collectives_count_once():
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
