"""Labels that are kept are those that would be made."""

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


def assert_right(found, tokenizer, transcripts=TRANSCRIPTS) -> None:
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text) for text in transcripts]
    assert all(ids.dtype == np.int32 for ids in found)


def test_a_second_start_reads_what_the_first_encoded(tokenizer, tmp_path, monkeypatch):
    kept = tmp_path / "labels.npz"
    assert_right(encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=kept), tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_all", None)
        again = encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=kept)
    assert_right(again, tokenizer)

    others = ["one two", "", "three  four\tfive", "größer 三 ", "two"]
    assert_right(encode_transcripts(others, tokenizer, cache_path=kept), tokenizer, others)
    path = tmp_path / "other.model"
    other = Tokenizer.train(["eno", *others], kind="bpe", vocabulary_size=24, path=path)
    assert_right(encode_transcripts(others, other, cache_path=kept), other, others)


@pytest.mark.parametrize("size", [0, 5, 100, -30])
def test_damage_is_encoded_anew(tokenizer, tmp_path, size):
    kept = tmp_path / "labels.npz"
    encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=kept)
    whole = kept.read_bytes()
    kept.write_bytes(whole[:size])
    assert_right(encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=kept), tokenizer)
    assert kept.read_bytes()[-30:] == whole[-30:] and not list(tmp_path.glob("*.tmp"))
    # A bit that flipped within the labels.
    at = whole.index(np.array(tokenizer.encode(TRANSCRIPTS[0]), np.int32).tobytes())
    kept.write_bytes(whole[:at] + b"\x7f" + whole[at + 1 :])
    assert_right(encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=kept), tokenizer)


def test_who_does_not_write_or_cannot_has_labels_too(tokenizer, tmp_path, monkeypatch):
    kept = tmp_path / "labels.npz"
    found = encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=kept, write_cache=False)
    assert_right(found, tokenizer)
    assert not kept.exists()
    nowhere = Path(tmp_path / "missing" / "labels.npz")
    assert_right(encode_transcripts(TRANSCRIPTS, tokenizer, cache_path=nowhere), tokenizer)
    assert encode_transcripts([], tokenizer, cache_path=kept) == []
