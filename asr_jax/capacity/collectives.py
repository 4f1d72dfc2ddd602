"""Collectives of a compiled program, read from XLA's text."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_OPERATION = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CONDITION = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"%?([\w.\-]+) = [su]\d+\[\]\S* constant\((\d+)\)")
_LESS = re.compile(r"ROOT .* compare\((.*)\), direction=LT")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z\d]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """Executions per step, and the bytes of all results on each device."""

    count: int
    bytes: int


class _Sent(NamedTuple):
    """A collective operation: the bytes of its results, and its executions per step.

    channel: shared by the pieces of one collective; empty if it is not cut into pieces.
    """

    kind: str
    bytes: int
    times: int
    channel: str = ""


def collectives(hlo: str) -> dict[str, Collective]:
    """Return the collectives of a program by kind. Loops of data-dependent length count once.

    The GPU compiler states how often a loop runs. The TPU compiler does not; there it is the number
    that the loop's condition compares its counter with, since JAX's loops count from 0 by ones. The
    TPU compiler also cuts collectives into pieces, each fused with concurrent computation, some in
    unrelated loops. Pieces share their channel, and count as often as the rarest of them.
    """
    counts, sizes = Counter(), Counter()
    pieces: dict[tuple[str, str, int], int] = {}
    for sent in _walk(*_computations(hlo), 1):
        if sent.channel:
            piece = sent.kind, sent.channel, sent.bytes
            pieces[piece] = min(sent.times, pieces.get(piece, sent.times))
        else:
            counts[sent.kind] += sent.times
            sizes[sent.kind] += sent.times * sent.bytes
    for (kind, _, size), times in pieces.items():
        counts[kind] += times
        sizes[kind] += times * size
    return {kind: Collective(counts[kind], sizes[kind]) for kind in sorted(counts)}


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Return the lines of every computation by name, and the name of the entry computation."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if opened := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line):
            name = opened[2]
            computations[name] = []
            entry = name if opened[1] else entry
        elif name:
            computations[name].append(line)
    return computations, entry


def _walk(
    computations: dict[str, list[str]], name: str, times: int, *, fused: bool = False
) -> Iterator[_Sent]:
    """Yield the collectives of a computation that runs `times` times, and of all that it calls."""
    for line in computations.get(name, []):
        if operation := _OPERATION.search(line):
            shape, kind, started = operation.groups()
            # Asynchronous collectives list their operands, too; sums only sometimes.
            given_too = bool(started) and (kind != "all-reduce" or shape.startswith("(("))
            channel = _CHANNEL.search(line) if fused else None
            size = _result_bytes(shape, has_operands=given_too)
            yield _Sent(kind, size, times, channel[1] if channel else "")
            continue
        inner = times * _trips(computations, line)
        for called in _CALLED.findall(line):
            yield from _walk(computations, called, inner, fused=" fusion(" in line)
        for branches in _BRANCHES.findall(line):
            for branch in branches.split(","):
                yield from _walk(computations, branch.strip(" %"), inner)


def _trips(computations: dict[str, list[str]], line: str) -> int:
    """Return how often the loop of this line runs; 1 for other lines, or if unknown."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = _CONDITION.search(line)
    lines = computations.get(condition[1], []) if condition else []
    constants = {c[1]: int(c[2]) for line in lines if (c := _CONSTANT.search(line))}
    compared = next((less[1] for line in lines if (less := _LESS.search(line))), "")
    # Operands may be written with their types.
    names = [operand.split()[-1].strip("%") for operand in compared.split(", ") if operand]
    return next((constants[name] for name in names if name in constants), 1)


def _result_bytes(shape: str, *, has_operands: bool) -> int:
    """Return the bytes of a shape's arrays; with operands, only of the results, its second half."""
    arrays = [
        _itemsize(kind) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _ARRAY.findall(shape)
        if not (has_operands and kind == "u32" and not sizes)
    ]
    return sum(arrays[len(arrays) // 2 :] if has_operands else arrays)


def _itemsize(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1
