"""Alignment of a rough text with the recognized characters, with skips on both sides."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt8
from rapidfuzz.distance import Levenshtein

# Equal characters in a row that fix the alignment, and how many of them at either end do not:
# the ends of a run may belong to a skip beside it.
ANCHOR, LOOSE = 16, 4
# What an equal and an unequal pair score, and what a skip costs, at its start and per character.
EQUAL, UNEQUAL = 1.0, -1.0
OPEN, EXTEND = 3.0, 0.05
# A text and speech this long without an anchor (14,000 characters each) have nothing in common.
MOST_CELLS = 200_000_000
# What the bits of a cell say.
DIAGONAL, SKIPS_SPOKEN, LONGER_TEXT_SKIP, LONGER_SPOKEN_SKIP = 1, 2, 4, 8


def align_characters(text: str, spoken: str) -> Int64[np.ndarray, " N"]:
    """Return the index in `spoken` of each character of `text`; -1 for characters that are skipped.

    The indices increase. Pairs may be unequal. Runs of ANCHOR equal characters on the shortest edit
    path (Levenshtein distance, by Hirschberg's algorithm in memory that grows with N alone) are
    fixed first. Between two of them, pairs and skips have the highest score of an alignment with
    affine gaps (Gotoh 1982), so that a skip is one piece and not scattered letters.
    """
    partners = np.full(len(text), -1, np.int64)
    i, j = 0, 0
    for k, m, count in [*_anchors(text, spoken), (len(text), len(spoken), 0)]:
        between = align_block(text[i:k], spoken[j:m])
        partners[i:k] = np.where(between < 0, -1, between + j)
        partners[k : k + count] = np.arange(m, m + count)
        i, j = k + count, m + count
    return partners


def _anchors(text: str, spoken: str) -> Iterator[tuple[int, int, int]]:
    """Yield (place in text, place in spoken, length) of runs that fix the alignment."""
    for block in Levenshtein.opcodes(text, spoken):
        length = block.src_end - block.src_start
        if block.tag == "equal" and length >= ANCHOR:
            yield block.src_start + LOOSE, block.dest_start + LOOSE, length - 2 * LOOSE


def align_block(text: str, spoken: str) -> Int64[np.ndarray, " N"]:
    """Return `align_characters` without anchors: every cell of the two is computed."""
    if not text or not spoken or len(text) * len(spoken) > MOST_CELLS:
        return np.full(len(text), -1, np.int64)
    return _traced(_cells(text, spoken))


def _cells(text: str, spoken: str) -> UInt8[np.ndarray, "N M"]:
    """Return the choices of every cell, row by row: Gotoh's recursions with M at a time."""
    heard = np.frombuffer(spoken.encode("utf-32-le"), np.uint32)
    places = EXTEND * np.arange(len(spoken) + 1)
    best = np.where(places > 0, -OPEN - places, 0.0)
    text_skip = np.full(len(best), -np.inf)
    cells = np.zeros((len(text) + 1, len(spoken) + 1), np.uint8)
    for row, character in enumerate(text, start=1):
        longer, opened = text_skip - EXTEND, best - OPEN - EXTEND
        text_skip = np.maximum(longer, opened)
        pair = best[:-1] + np.where(heard == ord(character), EQUAL, UNEQUAL)
        is_pair = pair >= text_skip[1:]
        best = text_skip.copy()
        best[1:] = np.maximum(pair, best[1:])
        opened_spoken = best - OPEN
        spoken_skip = np.full(len(best), -np.inf)
        spoken_skip[1:] = np.maximum.accumulate(opened_spoken + places)[:-1] - places[1:]
        skips = spoken_skip > best
        cells[row, longer > opened] |= LONGER_TEXT_SKIP
        cells[row, skips] |= SKIPS_SPOKEN
        cells[row, 1:][is_pair] |= DIAGONAL
        cells[row, 1:][spoken_skip[:-1] > opened_spoken[:-1]] |= LONGER_SPOKEN_SKIP
        best = np.maximum(best, spoken_skip)
    return cells


def _traced(cells: UInt8[np.ndarray, "N M"]) -> Int64[np.ndarray, " N1"]:
    """Return the partners on the best path, which is followed from its end."""
    i, j = cells.shape[0] - 1, cells.shape[1] - 1
    partners = np.full(i, -1, np.int64)
    state = "best"
    while i > 0 and j >= 0:
        cell = cells[i, j]
        if state == "best" and cell & SKIPS_SPOKEN:
            state = "spoken skip"
        if state == "spoken skip":
            state = "spoken skip" if cell & LONGER_SPOKEN_SKIP else "no spoken skip"
            j -= 1
        elif state == "text skip" or not cell & DIAGONAL:
            state = "text skip" if cell & LONGER_TEXT_SKIP else "best"
            i -= 1
        else:
            i, j, state = i - 1, j - 1, "best"
            partners[i] = j
    return partners
