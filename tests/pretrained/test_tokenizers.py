"""Tokenizers of pretrained models spell as their SentencePiece models do, one label higher."""

import base64
import io
import json

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from asr_jax.pretrained.tokenizer import model_of_json, read_tokenizer, without_blank
from asr_jax.text import Tokenizer
from tests.pretrained.references import MODELS

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Hello, World! It's 5 o'clock; isn't it?",
    "Zwölf Boxkämpfer jagen Eva über den Deich.",
]
ModelProto = vars(sentencepiece_model_pb2)["ModelProto"]


def trained(**options) -> bytes:
    """Return a model of byte-pair pieces whose unknown piece is the first, as NeMo's are."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 4),
        model_writer=model,
        model_type="bpe",
        **{"vocab_size": 80, "unk_id": 0, "bos_id": -1, "eos_id": -1, "minloglevel": 2, **options},
    )
    return model.getvalue()


MODELS_OF_PIECES = {
    "plain": {},
    "control": {"control_symbols": ["<|nospeech|>", "<pad>"], "user_defined_symbols": ["<mine>"]},
    "bytes": {"byte_fallback": True, "vocab_size": 330, "hard_vocab_limit": False},
    "identity": {"normalization_rule_name": "identity"},
}


@pytest.mark.parametrize("options", MODELS_OF_PIECES.values(), ids=MODELS_OF_PIECES)
def test_labels_are_the_ids_of_the_model_one_higher(tmp_path, options):
    model = trained(**options)
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer = read_tokenizer(model, "here")
    assert tokenizer.pieces[1:] == [original.id_to_piece(n) for n in range(len(original))]
    others = ["日本 x", "naïve ﬁne ½", "the the", ""]
    for text in [*TEXTS, *others]:
        labels = tokenizer.encode(text)
        assert labels == [id + 1 for id in original.encode(text)]
        assert tokenizer.decode(labels) == " ".join(original.decode(original.encode(text)).split())
        assert " ".join(word for word, _ in tokenizer.words(labels)) == tokenizer.decode(labels)
    assert without_blank(tokenizer.model) == model
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    assert Tokenizer.load(tmp_path / "tokenizer.model").model == tokenizer.model


def test_control_pieces_print_as_nothing():
    tokenizer = Tokenizer.read(
        read_tokenizer(trained(**MODELS_OF_PIECES["control"]), "here").model, "here"
    )
    control = tokenizer.pieces.index("<|nospeech|>")
    labels = [control, *tokenizer.encode("the dog"), control]
    assert tokenizer.decode(labels) == "the dog"
    assert [word for word, _ in tokenizer.words(labels)] == ["the", "dog"]
    used = [index for _, places in tokenizer.words(labels) for index in places]
    assert 0 not in used and len(labels) - 1 not in used


def test_bytes_of_a_character_belong_to_its_word_together():
    tokenizer = read_tokenizer(trained(**MODELS_OF_PIECES["bytes"]), "here")
    labels = tokenizer.encode("the 日本")
    assert sum(tokenizer.pieces[label].startswith("<0x") for label in labels) == 6
    (_, _), (word, places) = tokenizer.words(labels)
    assert word == "日本" and len(places) >= 6


@pytest.mark.parametrize("options", MODELS_OF_PIECES.values(), ids=MODELS_OF_PIECES)
def test_a_converted_tokenizer_is_the_model_that_it_was_converted_from(options):
    model = trained(**options)
    original = read_tokenizer(model, "here")
    converted = read_tokenizer(model_of_json(converted_to_json(model), "there"), "there")
    assert converted.pieces == original.pieces
    assert converted.normalization == original.normalization
    for text in [*TEXTS, "naïve ﬁne ½", "the the dog's"]:
        assert converted.encode(text) == original.encode(text)
        assert converted.decode(original.encode(text)) == original.decode(original.encode(text))


def converted_to_json(model: bytes) -> dict[str, object]:
    """Return the tokenizer.json that transformers makes of a model, as far as it matters."""
    proto = ModelProto.FromString(model)
    pieces = [piece.piece for piece in proto.pieces]
    ids = {piece: id for id, piece in enumerate(pieces)}
    kinds = ModelProto.SentencePiece.Type
    merges = [
        (ids[piece[:n] + piece[n:]], [piece[:n], piece[n:]])
        for piece in pieces
        for n in range(1, len(piece))
        if piece[:n] in ids and piece[n:] in ids
        if proto.pieces[ids[piece]].type == kinds.Value("NORMAL")
    ]
    special = [
        {"content": piece.piece, "id": id, "special": piece.type != kinds.Value("USER_DEFINED")}
        for id, piece in enumerate(proto.pieces)
        if piece.type not in (kinds.Value("NORMAL"), kinds.Value("BYTE"))
    ]
    charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
    precompiled = [{"type": "Precompiled", "precompiled_charsmap": charsmap}] if charsmap else []
    return {
        "added_tokens": [*special, {"content": "<blank>", "id": len(pieces), "special": True}],
        "normalizer": {"type": "Sequence", "normalizers": [*precompiled, {"type": "Strip"}]},
        "pre_tokenizer": {"type": "Metaspace", "prepend_scheme": "always"},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "vocab": ids,
            "merges": [pair for _, pair in sorted(merges)],
        },
    }


@pytest.mark.parametrize("name", ["ctc", "rnnt", "tdt"])
def test_the_tokenizers_of_the_reference_models_are_the_same_in_both_forms(name):
    folder = MODELS / name
    model = (folder / "tokenizer.model").read_bytes()
    fields = json.loads((folder / "tokenizer.json").read_bytes())
    original, converted = (
        read_tokenizer(model, "a"),
        read_tokenizer(model_of_json(fields, "b"), "b"),
    )
    assert converted.pieces == original.pieces
    for text in TEXTS:
        assert converted.encode(text) == original.encode(text)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": {"type": "WordPiece"}}, "must be 'BPE'"),
        ({"model": {}}, "not a tokenizer of transformers"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer 'Lowercase'"),
    ],
)
def test_tokenizers_of_other_kinds_are_refused(change, message):
    fields = converted_to_json(trained()) | change
    with pytest.raises(ValueError, match=message):
        model_of_json(fields, "tokenizer.json")


def test_models_without_an_unknown_piece_first_are_refused():
    model = trained(unk_id=1, bos_id=0)
    with pytest.raises(ValueError, match="its first piece must be <unk>"):
        read_tokenizer(model, "tokenizer.model")


def test_a_damaged_piece_is_refused():
    model = trained().replace("\N{LOWER ONE EIGHTH BLOCK}o".encode(), b"\xe2\x96\xffo", 1)
    with pytest.raises(ValueError, match="not UTF-8"):
        read_tokenizer(model, "tokenizer.model")
