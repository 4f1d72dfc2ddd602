"""Text normalization: LibriSpeech's form, and Whisper's for English."""

import re
import unicodedata
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_jax.scoring.normalize import (
    librispeech_text,
    normalizer,
    without_punctuation_and_case,
)

SAMPLES = Path(__file__).resolve().parents[2] / "samples/an4"


@pytest.mark.parametrize(
    "text, form",
    [
        ("Don’t “stop”, he said: it's café-time!", "DON'T STOP HE SAID IT'S CAFE TIME"),
        ("'tis the boys' ' '' snake_case 42", "'TIS THE BOYS' SNAKE CASE 42"),
        (" \t", ""),
        # Other scripts: marks belong to their letters, and different letters stay different.
        ("हिन्दी, में!", "हिन्दी में"),
        ("が か。 \uff8a\uff9e", "が か バ"),
        ("한국어.", "한국어"),
        ("ที่", "ที่"),
        ("\u0645\u064f\u062d\u064e\u0651", "\u0645\u064f\u062d\u064e\u0651"),
        ("и й", "И Й"),
        # A joiner is no border of a word, and an emoji's selector no word.
        ("\u0915\u094d\u200d\u0937 \u2764\ufe0f", "\u0915\u094d\u0937"),
    ],
)
def test_librispeech_form(text, form):
    assert librispeech_text(text) == form


@pytest.mark.parametrize("sign", "\u2018\u2019\x92\u02bc\u02bb\u2032\u00b4`\uff07\uff40")
def test_signs_within_a_word_are_apostrophes(sign):
    assert librispeech_text(f"don{sign}t  caf\u00e9{sign}s") == "DON'T CAFE'S"
    assert librispeech_text(f"5{sign}10 {sign} x").split()[-1] == "X"


@given(
    st.text(st.characters(max_codepoint=0x17F, exclude_characters="\u00ad\u00b4`\x91\x92\u0149"))
)
def test_librispeech_form_of_latin_text_drops_all_marks(text):
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c)).upper()
    plain = re.sub(r"[^\w']|_", " ", plain)
    plain = re.sub(r"(?<!\w)'+(?!\w)", " ", plain)
    assert librispeech_text(text) == " ".join(plain.split())


@given(st.text())
def test_librispeech_form_is_idempotent_and_single_spaced(text):
    once = librispeech_text(text)
    assert librispeech_text(once) == once == " ".join(once.split())


def test_librispeech_form_keeps_transcripts_that_have_it():
    files = [path.read_text() for path in SAMPLES.rglob("*.trans.txt")]
    lines = [line for text in files for line in text.splitlines()]
    texts = [line.split(maxsplit=1)[1].strip() for line in lines]
    assert len(texts) > 900 and [librispeech_text(t) for t in texts] == [t.upper() for t in texts]


def test_none_changes_nothing_and_whisper_is_whisper_normalizer():
    assert normalizer("none")(" A,  b") == " A,  b"
    if find_spec("whisper_normalizer"):
        text = "Mr. Brown won't colour twenty-one"
        assert normalizer("whisper")(text) == "mister brown will not color 21"
        assert normalizer("whisper")("Don\u2019t") == normalizer("whisper")("Don't")
        marked = "हिन्दी が ий 한"
        assert normalizer("whisper")(f"{marked}, caf\u00e9") == f"{marked} cafe"
    else:
        with pytest.raises(ValueError, match=re.escape("pip install 'asr_jax[score]'")):
            normalizer("whisper")


@pytest.mark.parametrize(
    "text, plain",
    [
        ("Well, DON\u2019T stop!", "well don't stop"),
        ("'tis the dogs' \u201cown\u201d ice-cream", "tis the dogs own ice cream"),
        (
            "Stra\u00dfe STRASSE \u039f\u0394\u038c\u03a3 \u03bf\u03b4\u03cc\u03c2",
            "strasse strasse οδόσ οδόσ",
        ),
        ("3.5 % = $5", "3 5 = $5"),
        ("你好，世界。「是」", "你好 世界 是"),
        ("नमस्ते। दुनिया", "नमस्ते दुनिया"),
        ("كَيْفَ حَالُكَ؟", "كَيْفَ حَالُكَ"),
        ("...", ""),
    ],
)
def test_punctuation_and_case_can_be_ignored(text, plain):
    assert without_punctuation_and_case(text) == plain == without_punctuation_and_case(plain)
