"""Counts of characters are those of a loop over them."""

from collections import Counter

import numpy as np

from asr_jax.survey.characters import TEXTS_AT_ONCE, count_characters


def test_counts_are_those_of_a_loop():
    random = np.random.default_rng(0)
    letters = np.array(list("abc \u00df\u4e09\U0001f600"))
    texts = ["".join(random.choice(letters, n)) for n in random.integers(12, size=3000)]
    texts[TEXTS_AT_ONCE:] = [text.replace("a", "") for text in texts[TEXTS_AT_ONCE:]]
    found = count_characters(texts)
    assert {c.character: c.count for c in found} == Counter("".join(texts))
    recordings = Counter(letter for text in texts for letter in set(text))
    assert {c.character: c.recordings for c in found} == recordings
    assert [c.count for c in found] == sorted((c.count for c in found), reverse=True)


def test_no_text_has_no_characters():
    assert count_characters([]) == count_characters([""]) == []
