"""Text as people write it, in the characters that a model knows."""

import functools
import unicodedata
from typing import NamedTuple

from asr_jax.text import Tokenizer


class WrittenWord(NamedTuple):
    """A word of a text, and how a model spells it."""

    written: str
    spelled: str
    """Characters that the model knows; empty for a dash or a number that it cannot spell."""


def written_words(text: str, tokenizer: Tokenizer) -> list[WrittenWord]:
    """Return the words of a text, which white space separates.

    A character that the model lacks is replaced by its other case or its letter without marks, and
    left out if the model lacks these too, as it may lack all punctuation.
    """

    @functools.cache
    def spelled(character: str) -> str:
        for other in _alternatives(character):
            if other and not tokenizer.unknown_characters(other):
                return other
        return ""

    return [WrittenWord(word, "".join(map(spelled, word))) for word in text.split()]


def unspelled_letters(text: str, tokenizer: Tokenizer) -> tuple[int, str]:
    """Return the number of letters and digits, and those of them that cannot be spelled."""
    characters = [character for character in text if character.isalnum()]
    unknown = {
        character
        for character in set(characters)
        if all(tokenizer.unknown_characters(other) for other in _alternatives(character))
    }
    return len(characters), "".join(character for character in characters if character in unknown)


def _alternatives(character: str) -> list[str]:
    plain = unicodedata.normalize("NFKD", character)
    base = "".join(c for c in plain if not unicodedata.combining(c))
    forms = [character, character.upper(), character.lower(), base, base.upper(), base.lower()]
    return [form for form in forms if form.strip()]
