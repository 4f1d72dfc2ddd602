"""Cached labels are equal to newly encoded labels."""

from pathlib import Path

import numpy as np
import pytest

from asr_jax.data.labels import encode_transcripts
from asr_jax.text import Tokenizer

TRANSCRIPTS = ["one two", "", "three  four\tfive", "größer 三", "one"]


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    path = tmp_path / "tokenizer.model"
    return Tokenizer.train(TRANSCRIPTS, kind="char", vocabulary_size=0, path=path)


def assert_right(labels, tokenizer, transcripts=TRANSCRIPTS) -> None:
    assert [ids.tolist() for ids in labels] == [tokenizer.encode(text) for text in transcripts]
    assert all(ids.dtype == np.int32 for ids in labels)


def test_a_second_start_reads_what_the_first_encoded(tokenizer, tmp_path, monkeypatch):
    cache_path = tmp_path / "labels.npz"
    assert_right(encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=cache_path), tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_all", None)
        again = encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=cache_path)
    assert_right(again, tokenizer)

    others = ["one two", "", "three  four\tfive", "größer 三 ", "two"]
    assert_right(encode_transcripts(others, tokenizer, cache_path=cache_path), tokenizer, others)
    path = tmp_path / "other.model"
    other = Tokenizer.train(["eno", *others], kind="bpe", vocabulary_size=24, path=path)
    assert_right(encode_transcripts(others, other, cache_path=cache_path), other, others)


def test_line_breaks_within_transcripts_are_not_ends_of_transcripts(tokenizer, tmp_path):
    cache_path = tmp_path / "labels.npz"
    for texts in (["one\ntwo", "one"], ["one", "two\none"]):
        labels = encode_transcripts(texts, tokenizer, cache_path=cache_path)
        assert_right(labels, tokenizer, texts)


@pytest.mark.parametrize("size", [0, 5, 100, -30])
def test_damaged_cache_is_encoded_again(tokenizer, tmp_path, size):
    cache_path = tmp_path / "labels.npz"
    encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=cache_path)
    whole = cache_path.read_bytes()
    cache_path.write_bytes(whole[:size])
    assert_right(encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=cache_path), tokenizer)
    assert cache_path.read_bytes()[-30:] == whole[-30:] and not list(tmp_path.glob("*.tmp"))
    # A flipped bit within the labels.
    at = whole.index(np.array(tokenizer.encode(TRANSCRIPTS[0]), np.int32).tobytes())
    cache_path.write_bytes(whole[:at] + b"\x7f" + whole[at + 1 :])
    assert_right(encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=cache_path), tokenizer)


def test_labels_without_a_writable_cache(tokenizer, tmp_path, monkeypatch):
    cache_path = tmp_path / "labels.npz"
    labels = encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=cache_path, write_cache=False)
    assert_right(labels, tokenizer)
    assert not cache_path.exists()
    nowhere = Path(tmp_path / "missing" / "labels.npz")
    assert_right(encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=nowhere), tokenizer)
    assert encode_transcripts([], tokenizer, cache_path=cache_path) == []
