"""What a compiled program sends from device to device, read off XLA's text."""

import math
import re
from collections import Counter
from typing import NamedTuple

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_OPERATION = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+[a-z\d]*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """How many times a step does it, and the bytes of its results on each device."""

    count: int
    bytes: int


def collectives(hlo: str) -> dict[str, Collective]:
    """By kind. A loop whose length only the batch decides counts once."""
    computations: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        if opened := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line):
            name = opened[2]
            computations[name] = []
            entry = name if opened[1] else entry
        elif name:
            computations[name].append(line)

    counts, sizes = Counter(), Counter()

    def walk(name: str, times: int) -> None:
        for line in computations.get(name, []):
            if operation := _OPERATION.search(line):
                shape, kind, started = operation.groups()
                counts[kind] += times
                # Waited for elsewhere, they name what they were given too; sums not always do.
                given_too = bool(started) and (kind != "all-reduce" or shape.startswith("(("))
                sizes[kind] += times * _result_bytes(shape, has_operands=given_too)
                continue
            trips = _TRIPS.search(line)
            inner = times * (int(trips[1]) if trips else 1)
            for called in _CALLED.findall(line):
                walk(called, inner)
            for branches in _BRANCHES.findall(line):
                for branch in branches.split(","):
                    walk(branch.strip(" %"), inner)

    walk(entry, 1)
    return {kind: Collective(counts[kind], sizes[kind]) for kind in sorted(counts)}


def _result_bytes(shape: str, *, has_operands: bool) -> int:
    """Of the arrays that a shape names; where operands stand before as many results, of these."""
    arrays = [
        _itemsize(kind) * math.prod(int(size) for size in sizes.split(",") if size)
        for kind, sizes in _ARRAY.findall(shape)
        if not (has_operands and kind == "u32" and not sizes)
    ]
    return sum(arrays[len(arrays) // 2 :] if has_operands else arrays)


def _itemsize(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1
