"""Text normalization before scoring, so that differences in notation are not counted as errors."""

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

Convention = Literal["none", "librispeech", "whisper"]


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
    return EnglishTextNormalizer()


def librispeech_text(text: str) -> str:
    """Return capitals, digits, apostrophes of words, and single spaces; accents are dropped.

    LibriSpeech's transcripts have this form with numbers spelled out, which this function does not
    do.
    """
    text = unicodedata.normalize("NFKD", text.replace("\u2019", "'"))
    text = "".join(c for c in text if not unicodedata.combining(c)).upper()
    text = re.sub(r"[^\w']|_", " ", text)
    text = re.sub(r"(?<!\w)'+(?!\w)", " ", text)
    return " ".join(text.split())
