"""The tokenizer: encoding is invertible, and sizes and errors are as documented."""

import functools
import io
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from asr_jax.text import (
    BLANK_ID,
    RESERVED,
    UNKNOWN_ID,
    Tokenizer,
    chosen_kind,
    collapse_white_space,
    folded,
)

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


ODD_TEXT = st.lists(
    st.sampled_from(["<unk>", "<blk>", "<s>", "</s>", "<pad>", "<0x41>", "<blk", "\u2047"])
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters=list(RESERVED)))
    | st.text([*"a<>", *" \t\x85\xa0\u2028\u2585\u200b\u200d\ufeff\ufffd\ufffe\x01\u0301\ue000"])
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@example(texts=["<unk>\u25850"])
@example(texts=["<blk>\u2585 <unk>\u2585"])
@given(
    texts=st.lists(ODD_TEXT, min_size=1, max_size=3).filter(lambda texts: "".join(texts).split())
)
def test_every_transcript_of_the_training_can_be_written(tmp_path_factory, kind, texts):
    path = tmp_path_factory.mktemp("odd") / "tokenizer.model"
    size = len(set("".join(map(collapse_white_space, texts))) | {" "}) + 2
    trained = Tokenizer.train(texts, kind=kind, vocabulary_size=size, path=path)
    assert Tokenizer.load(path).model == trained.model
    for text in texts:
        assert trained.unknown_characters(text) == "" and UNKNOWN_ID not in trained.encode(text)
        assert trained.decode(trained.encode(text)) == collapse_white_space(text)


def test_transcripts_with_reserved_characters_change_nothing(tmp_path):
    def train(texts: list[str]) -> bytes:
        path = tmp_path / "tokenizer.model"
        return Tokenizer.train(texts, kind="bpe", vocabulary_size=60, path=path).model

    assert train([*TRANSCRIPTS, "Q\0", "Q\u2581Q"]) == train(TRANSCRIPTS)


FOREIGN = {
    "as spm_train makes them": {},
    "unknown elsewhere": {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3},
    "icefall": {
        "user_defined_symbols": ["<blk>", "<sos/eos>"],
        "unk_id": 2,
        "bos_id": -1,
        "eos_id": -1,
    },
    "all over the place": {
        "model_type": "unigram",
        "vocab_size": 60,
        "unk_id": 5,
        "bos_id": 7,
        "eos_id": 9,
        "pad_id": 20,
        "unk_piece": "[UNK]",
        "unk_surface": "?",
        "pad_piece": "[PAD]",
    },
    "symbols": {"user_defined_symbols": ["HOUSE", "<laugh>"], "control_symbols": ["<ctl>"]},
    "case folded": {"normalization_rule_name": "nmt_nfkc_cf"},
    "characters": {"model_type": "char", "add_dummy_prefix": False},
    "characters after a space": {"model_type": "char", "normalization_rule_name": "nfkc_cf"},
    "every space": {"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
}


def write_foreign_model(path: Path, **options: object) -> sentencepiece.SentencePieceProcessor:
    """Train a model without this package, by default as spm_train would."""
    model = io.BytesIO()
    given = {"model_type": "bpe", "vocab_size": 70, "character_coverage": 1.0, **options}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TRANSCRIPTS, "<laugh> YES"]),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **given,
    )
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("options", FOREIGN.values(), ids=FOREIGN)
def test_models_from_elsewhere_are_relabeled(tmp_path, options):
    path = tmp_path / "foreign.model"
    foreign = write_foreign_model(path, **options)
    tokenizer = Tokenizer.load(path)
    assert tokenizer.pieces[:2] == ["<blk>", "<unk>"]
    ids = range(foreign.get_piece_size())
    is_special = lambda id: foreign.is_control(id) or foreign.is_unknown(id)
    names = [foreign.id_to_piece(id) for id in ids if not is_special(id)]
    assert tokenizer.pieces[2:] == [name for name in names if name != "<blk>"]

    texts = [*TRANSCRIPTS, "The  house ﬁ\u200b x", "<laugh> YES", "<s> [UNK] <blk> <unk> Q"]
    for text in texts:
        labels, unknown = tokenizer.encode(text), tokenizer.unknown_characters(text)
        assert all(BLANK_ID < label < tokenizer.vocabulary_size for label in labels)
        assert (UNKNOWN_ID in labels) == bool(unknown)
        assert tokenizer.encode_all([text])[0].tolist() == labels
        if not unknown:
            assert tokenizer.decode(labels) == tokenizer.normalize(text)
            # The segmentation is the foreign model's.
            pieces = foreign.encode(collapse_white_space(text), out_type=str)
            assert [tokenizer.pieces[label] for label in labels] == pieces
    first, second = map(tokenizer.encode, TRANSCRIPTS[:2])
    joined = tokenizer.encode(" ".join(TRANSCRIPTS[:2]))
    assert joined == first + tokenizer.separator + second
    # The copy in a run directory is read as it is.
    copy = tmp_path / "tokenizer.model"
    copy.write_bytes(tokenizer.model)
    assert Tokenizer.load(copy).model == tokenizer.model


def test_a_model_that_folds_is_asked_about_folded_text(tmp_path):
    write_foreign_model(tmp_path / "a.model", normalization_rule_name="nmt_nfkc_cf")
    tokenizer = Tokenizer.load(tmp_path / "a.model")
    assert tokenizer.folding == "nmt_nfkc_cf"
    assert tokenizer.normalize(" The  HOUSE\u200bﬁ") == "the house fi"
    assert tokenizer.unknown_characters("THE HOUSE Q!") == "!q"
    assert tokenizer.characters >= set("the ") and not set("THE") & tokenizer.characters


def lower_case(text: str) -> str:
    return "".join(map(str.lower, text))


PEOPLE_WRITE = [
    "Straße, ΟΔΌΣ οδός… İstanbul!",
    "Ⅷ ½ ｱｶﾞ１２ Ａｂ Ǆ",
    "नमस्ते दुनिया। 你好，世界 ทำไม",
    "مَرْحَبًا بِكُم؟ ﻻ",
    "zero\u200bwidth \x01 x <BLK> <ＵＮＫ> e\u0301\u2585",
]
NORMALIZED = {
    "none": lambda text: text,
    "nfkc": functools.partial(unicodedata.normalize, "NFKC"),
    "lowercase": lambda text: lower_case(
        unicodedata.normalize("NFKC", text).replace("\u200b", " ").replace("\x01", "")
    ),
}


@pytest.mark.parametrize("kind", ["unigram", "char"])
@pytest.mark.parametrize("normalization", NORMALIZED)
def test_labels_spell_the_normalized_text(tmp_path, kind, normalization):
    path = tmp_path / "tokenizer.model"
    expected = [collapse_white_space(NORMALIZED[normalization](text)) for text in PEOPLE_WRITE]
    size = len(set("".join(expected))) + 3
    trained = Tokenizer.train(
        PEOPLE_WRITE, kind=kind, vocabulary_size=size, path=path, normalization=normalization
    )
    loaded = Tokenizer.load(path)
    assert loaded.model == trained.model
    assert (loaded.kind, loaded.normalization) == (kind, normalization)
    assert folded(PEOPLE_WRITE, normalization) == expected
    assert [loaded.normalize(text) for text in PEOPLE_WRITE] == expected
    for text, ids in zip(PEOPLE_WRITE, loaded.encode_all(PEOPLE_WRITE), strict=True):
        assert loaded.decode(ids) == loaded.normalize(text)
        assert ids.tolist() == loaded.encode(text) and UNKNOWN_ID not in ids
        assert loaded.unknown_characters(text) == ""
    if normalization == "lowercase":
        assert loaded.encode("STRAßE") == loaded.encode("straße")
        # Every character that can be written is in lower case.
        assert not {c for c in loaded.characters if c != c.lower()}


def test_the_rules_of_other_names_are_sentencepieces_own(tmp_path):
    for name in ("nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"):
        write_foreign_model(tmp_path / "a.model", normalization_rule_name=name)
        theirs = Tokenizer.load(tmp_path / "a.model")
        assert theirs.normalization == name
        assert folded(PEOPLE_WRITE, name) == [theirs.normalize(text) for text in PEOPLE_WRITE]
    write_foreign_model(tmp_path / "a.model", normalization_rule_name="identity")
    assert Tokenizer.load(tmp_path / "a.model").normalization == "none"
    (tmp_path / "rules.tsv").write_text("41\t42\n")  # A becomes B.
    write_foreign_model(tmp_path / "a.model", normalization_rule_tsv=str(tmp_path / "rules.tsv"))
    theirs = Tokenizer.load(tmp_path / "a.model")
    assert (theirs.normalization, theirs.normalize("AXA")) == ("other", "BXB")


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix = true: must"),
        ({"byte_fallback": True, "vocab_size": 400}, "byte_fallback = true: "),
        ({"model_type": "word"}, "model_type = word: must be unigram, bpe or char"),
        ({"split_by_whitespace": False}, "must not span several words"),
        ({"add_dummy_prefix": False}, "add_dummy_prefix = false: "),
        ({"user_defined_symbols": ["NEW YORK"]}, "piece 'NEW YORK': must not contain white space"),
    ],
)
def test_models_whose_labels_do_not_spell_the_text_are_refused(tmp_path, options, reason):
    path = tmp_path / "foreign.model"
    write_foreign_model(path, **options)
    with pytest.raises(ValueError) as error:
        Tokenizer.load(path)
    assert str(error.value).startswith(f"{path}: a SentencePiece model that cannot be used, ")
    assert reason in str(error.value) and "\n" not in str(error.value)


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
    with pytest.raises(
        ValueError, match=r"^transcripts: all are empty or hold U\+0000 or U\+2581,"
    ):
        Tokenizer.train(
            ["", "A\0"], kind="char", vocabulary_size=0, path=tmp_path / "tokenizer.model"
        )
    with pytest.raises(ValueError, match="none.model: No such file"):
        Tokenizer.load(tmp_path / "none.model")
    (tmp_path / "other.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="other.model: not a SentencePiece model"):
        Tokenizer.load(tmp_path / "other.model")


def test_the_kind_of_pieces_follows_from_the_amount_of_text(tmp_path):
    hour = ["the quick brown fox jumps over the lazy dog and runs away"] * 950
    assert chosen_kind(hour) == ("char", len(set(hour[0])) + 2)
    sizes = [chosen_kind(hour * hours) for hours in (20, 30, 60, 100, 1000)]
    assert sizes == [("unigram", n) for n in (256, 256, 512, 1024, 1024)]
    # A script with thousands of characters is spelled in them, however much text there is.
    script = "".join(chr(0x4E00 + n) for n in range(3000))
    assert chosen_kind([script] * 10_000) == ("char", 3002)
    assert chosen_kind([]) == ("char", 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_knows_its_kind(tmp_path, kind):
    path = tmp_path / "tokenizer.model"
    Tokenizer.train(TRANSCRIPTS, kind=kind, vocabulary_size=KINDS[kind], path=path)
    assert Tokenizer.load(path).kind == kind


def test_added_pieces_spell_their_text_and_move_no_label(tokenizer, tmp_path):
    added = tokenizer.with_pieces(["[noise]", "Ж", "日本"])
    assert added.pieces == [*tokenizer.pieces, "[noise]", "Ж", "日本"]
    for text in ("SEVEN FIFTY FIVE", "größer als"):
        assert added.encode(text) == tokenizer.encode(text)
    for text in ("[noise] YES", "YES[noise] NO", "日本 語", "Ж [noise]"):
        assert added.decode(added.encode(text)) == text
        assert not added.unknown_characters(text)
        last = {
            len(tokenizer.pieces) + n for n, piece in enumerate(added.pieces[-3:]) if piece in text
        }
        assert last <= set(added.encode(text))
    joined = added.encode("[noise]") + added.separator + added.encode("YES")
    assert added.encode("[noise] YES") == joined
    path = tmp_path / "tokenizer.model"
    path.write_bytes(added.model)
    assert Tokenizer.load(path).model == added.model
    for piece, rule in [("", "white space"), ("a b", "white space"), ("YES\u2581", "U\\+2581")]:
        with pytest.raises(ValueError, match=rule):
            tokenizer.with_pieces([piece])
    for pieces in (["Y"], ["[x]", "[x]"]):
        with pytest.raises(ValueError, match="is a piece already"):
            tokenizer.with_pieces(pieces)


def test_added_pieces_are_not_normalized(tmp_path):
    path = tmp_path / "lower.model"
    model = Tokenizer.train(
        TRANSCRIPTS, kind="char", vocabulary_size=0, path=path, normalization="lowercase"
    )
    added = model.with_pieces(["[NOISE]"])
    assert added.decode(added.encode("YES [NOISE]")) == added.normalize("YES [NOISE]")
    assert added.normalize("YES [NOISE]") == "yes [NOISE]"
