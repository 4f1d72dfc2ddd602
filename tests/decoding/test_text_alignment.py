"""The alignment of a rough text equals the best of all alignments, and skips in one piece."""

import functools
import random

import numpy as np
import pytest

from asr_jax.decoding import text_alignment
from asr_jax.decoding.text_alignment import (
    EQUAL,
    EXTEND,
    OPEN,
    UNEQUAL,
    align_block,
    align_characters,
)


def best_score(text: str, spoken: str) -> float:
    """Return the highest score of all alignments, by trying each step everywhere."""

    @functools.cache
    def best(i: int, j: int, step: str) -> float:
        """Score of the rest from (i, j) after a pair, a skip in the text or in the speech."""
        if i == len(text) and j == len(spoken):
            return 0.0
        scores = []
        if i < len(text) and j < len(spoken):
            pair = EQUAL if text[i] == spoken[j] else UNEQUAL
            scores.append(pair + best(i + 1, j + 1, "pair"))
        if i < len(text):
            scores.append(best(i + 1, j, "text") - EXTEND - OPEN * (step != "text"))
        if j < len(spoken):
            scores.append(best(i, j + 1, "spoken") - EXTEND - OPEN * (step != "spoken"))
        return max(scores)

    return best(0, 0, "pair")


def score_of(text: str, spoken: str, partners: np.ndarray) -> float:
    """Return the score of an alignment, with at most one skip on each side between two pairs."""
    score, i, j = 0.0, 0, 0
    ends = [(k, m) for k, m in enumerate(partners.tolist()) if m >= 0]
    for k, m in [*ends, (len(text), len(spoken))]:
        for skipped in (k - i, m - j):
            score -= (OPEN + EXTEND * skipped) if skipped else 0
        if k < len(text):
            score += EQUAL if text[k] == spoken[m] else UNEQUAL
        i, j = k + 1, m + 1
    return score


@pytest.mark.parametrize("seed", range(40))
def test_alignment_of_a_block_has_the_best_score_of_all(seed):
    chance = random.Random(seed)
    text, spoken = ("".join(chance.choices("abc", k=chance.randint(1, 12))) for _ in range(2))
    partners = align_block(text, spoken)
    paired = partners[partners >= 0]
    assert (np.diff(paired) > 0).all()
    np.testing.assert_allclose(score_of(text, spoken, partners), best_score(text, spoken))


def test_skips_on_both_sides_are_single_pieces():
    chance = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    a, b, unread, foreign = ("".join(chance.choices(letters, k=n)) for n in (60, 60, 90, 120))
    partners = align_characters(a + unread + b, a + foreign + b)
    np.testing.assert_array_equal(partners[:60], np.arange(60))
    np.testing.assert_array_equal(partners[150:], np.arange(180, 240))
    assert (partners[60:150] >= 0).mean() < 0.2


def test_anchors_change_no_alignment_of_a_text_with_errors(monkeypatch):
    chance = random.Random(1)
    spoken = "".join(chance.choices("abcdefghijklmnop", k=1500))
    text = "".join(c for c in spoken if chance.random() > 0.03)
    with_anchors = align_characters(text, spoken)
    monkeypatch.setattr(text_alignment, "ANCHOR", 10**9)
    alone = align_characters(text, spoken)
    assert (with_anchors == alone).mean() > 0.99


def test_texts_too_different_for_memory_are_skipped(monkeypatch):
    monkeypatch.setattr(text_alignment, "MOST_CELLS", 100)
    assert (align_characters("x" * 20, "y" * 20) == -1).all()


@pytest.mark.parametrize("text, spoken", [("", ""), ("abc", ""), ("", "abc")])
def test_nothing_is_aligned_with_nothing(text, spoken):
    assert align_characters(text, spoken).tolist() == [-1] * len(text)
