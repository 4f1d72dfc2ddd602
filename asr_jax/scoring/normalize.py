"""Text normalization before scoring, so that differences in notation are not counted as errors."""

import functools
import re
import unicodedata
from collections.abc import Callable
from typing import Literal

Convention = Literal["none", "librispeech", "whisper"]

# Quotation marks (also of Windows-1252, decoded as Latin-1), modifier letters, primes, acute, grave
# and the apostrophes of Armenian, Hebrew and Greek. U+2019 and U+02BC are apostrophes everywhere,
# these between letters.
_APOSTROPHES = frozenset(
    "\u2018\u201b\x91\x92\u02b9\u02bb\u02bd\u2032\u2035\u00b4`\uff40\u055a\u05f3\u1fbd\u1fbf"
)
_VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
_ZERO_WIDTH_SPACE = "\u200b"


def normalizer(convention: Convention) -> Callable[[str], str]:
    """Return the function that normalizes references and hypotheses.

    none         changes nothing, as is usual for references in LibriSpeech's form
    librispeech  `librispeech_text`, for a recognizer that writes case and punctuation
    whisper      whisper-normalizer's English form (arXiv 2212.04356, appendix C), which also
                 unifies numbers, contractions and British spelling, and drops "um" and brackets

    Raises ValueError if the package whisper-normalizer is not installed.
    """
    if convention == "none":
        return str
    if convention == "librispeech":
        return librispeech_text
    try:
        from whisper_normalizer.english import (  # pyright: ignore[reportMissingImports]
            EnglishTextNormalizer,
        )
    except ImportError as error:
        raise ValueError(
            "--normalize whisper: needs the package whisper-normalizer, "
            "pip install 'asr_jax[score]'"
        ) from error
    return functools.partial(_whisper_text, EnglishTextNormalizer())


def librispeech_text(text: str) -> str:
    """Return capitals, digits, apostrophes of words, and single spaces.

    Accents of Latin letters are dropped; marks of other scripts belong to their words.
    LibriSpeech's transcripts have this form with numbers spelled out, which this function does not
    do.
    """
    text = _without_latin_marks(_with_apostrophes(text)).replace("\u02bc", "'").upper()
    text = "".join(c if c.isalnum() or c == "'" or _is_mark(c) else " " for c in text)
    text = re.sub(r"(?<![^\s'])'+(?![^\s'])", " ", text)  # apostrophes next to no letter
    return unicodedata.normalize("NFC", " ".join(text.split()))


def without_punctuation_and_case(text: str) -> str:
    """Return the text case-folded, with punctuation (Unicode's category P) as spaces.

    An apostrophe between two letters stays. Digits, symbols and accents are kept.
    """
    text = f" {_with_apostrophes(text)} "
    kept = (
        c
        if unicodedata.category(c)[0] != "P"
        or (c == "'" and _is_letter(before) and _is_letter(after))
        else " "
        for before, c, after in zip(text, text[1:], text[2:])
    )
    return unicodedata.normalize("NFC", " ".join("".join(kept).casefold().split()))


def _whisper_text(english: Callable[[str], str], text: str) -> str:
    """Return Whisper's form of a text, in which marks of other scripts than Latin are kept.

    `english` is Whisper's English normalization, which takes these marks for spaces.
    """
    text = _with_apostrophes(text)
    marked = {
        c
        for c in _without_latin_marks(text.lower())
        if _is_mark(c) or unicodedata.normalize("NFD", c) != c
    }
    if not marked:
        return english(text)
    stand_ins = {ord(c): chr(code) for code, c in enumerate(sorted(marked), start=0xF0000)}
    composed = unicodedata.normalize("NFKC", text.lower())
    normalized = english(composed.translate(stand_ins))
    return normalized.translate({ord(new): old for old, new in stand_ins.items()})


def _with_apostrophes(text: str) -> str:
    """Replace the characters that people write for an apostrophe within a word."""
    text = unicodedata.normalize("NFC", text).replace("\u2019", "'").replace("\u02bc", "'")
    if not any(c in text for c in _APOSTROPHES):
        return text
    padded = f" {text} "
    return "".join(
        c if c not in _APOSTROPHES else "'" if _is_letter(before) and _is_letter(after) else " "
        for before, c, after in zip(padded, text, padded[2:])
    )


def _without_latin_marks(text: str) -> str:
    """Return the text in NFKC, without format characters and without marks of Latin letters."""
    kept, base = [], ""
    for c in unicodedata.normalize("NFKD", text):
        if c in _VARIATION_SELECTORS or (
            unicodedata.category(c) == "Cf" and c != _ZERO_WIDTH_SPACE
        ):
            continue
        if not _is_mark(c):
            base = c
        elif not base.isalpha() or unicodedata.name(base, "").startswith("LATIN"):
            continue
        kept.append(c)
    return unicodedata.normalize("NFC", "".join(kept))


def _is_letter(character: str) -> bool:
    return unicodedata.category(character)[0] in "LM"


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"
