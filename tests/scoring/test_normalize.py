"""Text normalization: LibriSpeech's form, and Whisper's for English."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr_jax.scoring.normalize import librispeech_text, normalizer

SAMPLES = Path(__file__).resolve().parents[2] / "samples/an4"


@pytest.mark.parametrize(
    "text, form",
    [
        ("Don’t “stop”, he said: it's café-time!", "DON'T STOP HE SAID IT'S CAFE TIME"),
        ("'tis the boys' ' '' snake_case 42", "'TIS THE BOYS' SNAKE CASE 42"),
        (" \t", ""),
    ],
)
def test_librispeech_form(text, form):
    assert librispeech_text(text) == form


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
    else:
        with pytest.raises(ValueError, match=re.escape("pip install 'asr_jax[score]'")):
            normalizer("whisper")
