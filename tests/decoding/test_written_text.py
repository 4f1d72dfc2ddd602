"""Text is spelled in the characters that a model has, and keeps its words."""

import pytest

from asr_jax.decoding.written_text import unspelled_letters, written_words
from asr_jax.text import Tokenizer


@pytest.fixture(scope="module")
def of_capitals(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "model"
    return Tokenizer.train(
        ["THE QUICK BROWN FOX DOESN'T"], kind="char", vocabulary_size=0, path=path
    )


def test_words_are_spelled_in_the_case_and_letters_of_the_model(of_capitals):
    words = written_words("“The fox — doésn't!” 42", of_capitals)
    assert [word.written for word in words] == ["“The", "fox", "—", "doésn't!”", "42"]
    assert [word.spelled for word in words] == ["THE", "FOX", "", "DOESN'T", ""]


def test_letters_without_a_label_are_counted(of_capitals):
    assert unspelled_letters("the fox, двa", of_capitals) == (9, "двa")
