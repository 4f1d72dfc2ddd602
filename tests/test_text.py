"""The tokenizer: encoding is invertible, and sizes and errors are as documented."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_jax.text import BLANK_ID, UNKNOWN_ID, Tokenizer, collapse_white_space

TRANSCRIPTS = [
    "ERASE X B M N T FOUR ONE OH NINE",
    "SEVEN FIFTY FIVE",
    "THE HOUSE DOESN'T FALL WHEN THE HOUSE FALLS",
    "YES NO YES YES",
    "größer als 日本 語 ½ ﬁ Ａ",
] * 3
ALPHABET = sorted(set("".join(TRANSCRIPTS)))
KINDS = {"unigram": 46, "bpe": 60, "char": 0}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    return Tokenizer.train(
        TRANSCRIPTS,
        kind=request.param,
        vocabulary_size=KINDS[request.param],
        path=tmp_path_factory.mktemp("tokenizer") / "tokenizer.model",
    )


@settings(max_examples=60, deadline=None)
@given(text=st.text([*ALPHABET, " ", "\t", "\n", "\u3000"], max_size=40))
def test_decoding_undoes_encoding(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == collapse_white_space(text)
    assert all(UNKNOWN_ID < id < tokenizer.vocabulary_size for id in ids)
    assert tokenizer.unknown_characters(text) == ""


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text([*ALPHABET, " ", "\t", "\x1c", "\u3000", "\u200b"], max_size=12)))
def test_encode_all_encodes_as_encode(tokenizer, texts):
    encoded = tokenizer.encode_all(texts)
    assert [ids.tolist() for ids in encoded] == [tokenizer.encode(text) for text in texts]
    assert all(ids.dtype == "int32" for ids in encoded)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(
        st.text(ALPHABET, min_size=1).map(collapse_white_space).filter(bool), min_size=2, max_size=2
    )
)
def test_joined_transcripts_have_joined_labels(tokenizer, parts):
    first, second = (tokenizer.encode(part) for part in parts)
    assert tokenizer.encode(" ".join(parts)) == first + tokenizer.separator + second


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_words_are_those_of_the_text_with_the_labels_that_spell_them(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=20))
    words = tokenizer.words(ids)
    assert " ".join(word for word, _ in words) == tokenizer.decode(ids)
    for word, places in words:
        assert tokenizer.decode([ids[place] for place in places]) == word
    # Labels are in order, and a label of no word adds no text.
    used = [place for _, places in words for place in places]
    assert used == sorted(set(used))
    rest = [id for place, id in enumerate(ids) if place not in used]
    assert tokenizer.decode(rest) == ""


def test_vocabulary_sizes_are_as_requested(tmp_path):
    for kind, size in KINDS.items():
        tokenizer = Tokenizer.train(
            TRANSCRIPTS, kind=kind, vocabulary_size=size, path=tmp_path / "tokenizer.model"
        )
        expected = len(ALPHABET) + 2 if kind == "char" else size
        assert tokenizer.vocabulary_size == expected


def test_a_character_is_one_label(tmp_path):
    tokenizer = Tokenizer.train(
        TRANSCRIPTS, kind="char", vocabulary_size=0, path=tmp_path / "tokenizer.model"
    )
    for text in ("YES", "YES NO", "größer 日"):
        assert len(tokenizer.encode(text)) == len(text)
        assert [tokenizer.decode([id]) for id in tokenizer.encode("YES")] == ["Y", "E", "S"]
    assert tokenizer.encode(" ") == []


def test_unknown_characters_are_named_and_are_label_1(tokenizer):
    assert tokenizer.unknown_characters("  YES! ÉÉ\u2581NO? ") == "!?É\u2581"
    assert UNKNOWN_ID in tokenizer.encode("YES!") and BLANK_ID not in tokenizer.encode("YES <blk>")
    assert tokenizer.encode("") == []


def test_a_character_of_only_one_very_long_transcript_is_kept(tmp_path):
    tokenizer = Tokenizer.train(
        [*TRANSCRIPTS, "YES " * 3000 + "Q"],
        kind="bpe",
        vocabulary_size=60,
        path=tmp_path / "tokenizer.model",
    )
    assert tokenizer.unknown_characters("Q") == ""


@pytest.mark.parametrize(("kind", "size"), [("unigram", 8), ("bpe", 8), ("char", 0)])
def test_transcripts_of_one_word_still_give_the_space_a_piece(tmp_path, kind, size):
    tokenizer = Tokenizer.train(
        ["ONE", "TWO"] * 4, kind=kind, vocabulary_size=size, path=tmp_path / "tokenizer.model"
    )
    joined = tokenizer.encode("TWO") + tokenizer.separator + tokenizer.encode("ONE")
    assert tokenizer.decode(joined) == "TWO ONE" and UNKNOWN_ID not in joined


def test_a_saved_model_is_the_same_tokenizer(tmp_path):
    trained = Tokenizer.train(
        TRANSCRIPTS, kind="unigram", vocabulary_size=46, path=tmp_path / "tokenizer.model"
    )
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert [loaded.encode(text) for text in TRANSCRIPTS] == [
        trained.encode(text) for text in TRANSCRIPTS
    ]
    again = Tokenizer.train(
        TRANSCRIPTS, kind="unigram", vocabulary_size=46, path=tmp_path / "again.model"
    )
    assert (tmp_path / "again.model").read_bytes() == (tmp_path / "tokenizer.model").read_bytes()
    assert again.separator == loaded.separator


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_size_named_by_an_error_is_the_limit(tmp_path, kind, capfd):
    def train(size: int) -> Tokenizer:
        return Tokenizer.train(
            TRANSCRIPTS, kind=kind, vocabulary_size=size, path=tmp_path / "tokenizer.model"
        )

    for size, word in ((3, "at least"), (-1, "at least"), (9000, "at most")):
        with pytest.raises(
            ValueError, match=rf"^tokenizer.vocabulary_size = {size}: .* {word} \d+$"
        ) as caught:
            train(size)
        limit = int(str(caught.value).split()[-1])
        assert train(limit).vocabulary_size == limit
        with pytest.raises(ValueError, match=word):
            train(limit + (1 if word == "at most" else -1))
    assert capfd.readouterr() == ("", "")


def test_errors_of_training_and_loading(tmp_path):
    with pytest.raises(ValueError, match="^transcripts: all are empty"):
        Tokenizer.train(
            ["", " "], kind="char", vocabulary_size=0, path=tmp_path / "tokenizer.model"
        )
    with pytest.raises(ValueError, match="none.model: No such file"):
        Tokenizer.load(tmp_path / "none.model")
    (tmp_path / "other.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="other.model: not a SentencePiece model"):
        Tokenizer.load(tmp_path / "other.model")
