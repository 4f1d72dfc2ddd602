"""A SentencePiece model as the tokenizer.json that transformers reads.

The form is that of transformers' own conversion (convert_slow_tokenizer.py): the merges of a
byte-pair model follow from the pieces and their order.
"""

import base64
from collections.abc import Mapping, Sequence

from sentencepiece import sentencepiece_model_pb2

from asr_jax.text import SPACE_PIECE

_Model = vars(sentencepiece_model_pb2)["ModelProto"]
_Type = _Model.SentencePiece.Type
Json = dict[str, object]


def tokenizer_json(model: bytes, appended: Sequence[str]) -> Json:
    """Return the fields of tokenizer.json.

    Args:
        model: a SentencePiece model whose first piece stands for unknown text.
        appended: special tokens after its pieces, such as the blank.
    """
    proto = _Model.FromString(model)
    scheme = "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    metaspace = {
        "type": "Metaspace",
        "replacement": SPACE_PIECE,
        "prepend_scheme": scheme,
        "split": proto.trainer_spec.model_type != proto.trainer_spec.CHAR,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(proto, appended),
        "normalizer": _normalizer(proto),
        "pre_tokenizer": metaspace,
        "post_processor": None,
        "decoder": metaspace,
        "model": _byte_pairs(proto) if proto.trainer_spec.model_type == 2 else _unigrams(proto),
    }


def _added_tokens(proto, appended: Sequence[str]) -> list[Json]:
    kinds = {_Type.UNKNOWN: True, _Type.CONTROL: True, _Type.USER_DEFINED: False}
    tokens = [
        (number, piece.piece, kinds[piece.type])
        for number, piece in enumerate(proto.pieces)
        if piece.type in kinds
    ]
    tokens += [(number, text, True) for number, text in enumerate(appended, len(proto.pieces))]
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": n, "content": text, **off, "special": special} for n, text, special in tokens]


def _normalizer(proto) -> Json:
    charsmap = proto.normalizer_spec.precompiled_charsmap
    parts: list[Json] = []
    if charsmap:
        text = base64.b64encode(charsmap).decode()
        parts.append({"type": "Precompiled", "precompiled_charsmap": text})
    parts.append({"type": "Strip", "strip_left": False, "strip_right": True})
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE_PIECE}
    return {"type": "Sequence", "normalizers": [*parts, spaces]}


def _byte_pairs(proto) -> Json:
    vocabulary = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": proto.pieces[0].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        # As in transformers' own conversion; without pieces of bytes it has no effect.
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": _merges(vocabulary, {p.piece: p.score for p in proto.pieces}),
    }


def _merges(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[list[str]]:
    """Return the pairs of pieces that make a piece, of the highest score first."""
    merges = []
    for piece in vocabulary:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        pairs.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(scores[piece], pair) for pair in pairs]
    # A stable sort: pairs of equal scores stay in the order of their pieces.
    merges.sort(key=lambda merge: -merge[0])
    return [list(pair) for _, pair in merges]


def _unigrams(proto) -> Json:
    return {
        "type": "Unigram",
        "unk_id": 0,
        "vocab": [[piece.piece, piece.score] for piece in proto.pieces],
        "byte_fallback": False,
    }
