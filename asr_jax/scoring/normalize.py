"""Forms of a text that count as the same: what is written another way is no error then."""

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

Convention = Literal["none", "librispeech", "whisper"]


def normalizer(convention: Convention) -> Callable[[str], str]:
    """The function that brings both sides, reference and hypothesis, into one form.

    none         as they stand; references in LibriSpeech's form are scored as everybody does so
    librispeech  `librispeech_text`: for a recogniser that writes case and punctuation
    whisper      whisper-normalizer's English one (arXiv 2212.04356, appendix C), which also spells
                 numbers, contractions and British words in one way, and drops "um" and brackets

    Raises ValueError where that package is not installed.
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
    return EnglishTextNormalizer()


def librispeech_text(text: str) -> str:
    """Capitals, digits, the apostrophes of words, and single spaces; accents are dropped.

    LibriSpeech's transcripts are in this form, their numbers spelled out, which is not done here.
    """
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    text = "".join(c for c in text if not unicodedata.combining(c)).upper()
    text = re.sub(r"[^\w']|_", " ", text)
    text = re.sub(r"(?<!\w)'+(?!\w)", " ", text)
    return " ".join(text.split())
