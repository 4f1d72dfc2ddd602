"""The tokenizer of a pretrained model, with this package's blank before its pieces.

NeMo's blank is a label after the last piece and stands outside of the SentencePiece model; here it
is piece 0. Protocol buffers merge what stands twice, so a piece is prepended, and settings are
appended, without a change of the bytes between.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import cast

from sentencepiece import sentencepiece_model_pb2

from asr_jax.text import (
    BLANK_PIECE,
    UNKNOWN_PIECE,
    Normalization,
    Tokenizer,
    normalization_rules,
)

_Model = vars(sentencepiece_model_pb2)["ModelProto"]
_NormalizerSpec = vars(sentencepiece_model_pb2)["NormalizerSpec"]
_Piece = _Model.SentencePiece
# SentencePiece's own rules.
_NAMED: tuple[Normalization, ...] = ("nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")
_FIRST = _Model(pieces=[_Piece(piece=BLANK_PIECE, score=0.0, type="CONTROL")]).SerializeToString()
_LAST = _Model(
    trainer_spec={"pad_id": 0, "pad_piece": BLANK_PIECE, "unk_id": 1, "bos_id": -1, "eos_id": -1},
    normalizer_spec={"remove_extra_whitespaces": True},
).SerializeToString()


def with_blank(model: bytes) -> bytes:
    """Return a SentencePiece model in which the blank is piece 0 and all others move up by one."""
    return _FIRST + model + _LAST


def without_blank(model: bytes) -> bytes:
    """Return the bytes that `with_blank` was given. Raises ValueError for another model."""
    if not (model.startswith(_FIRST) and model.endswith(_LAST)):
        raise ValueError("a tokenizer that no import wrote: its blank cannot be taken off")
    return model[len(_FIRST) : -len(_LAST)]


def read_tokenizer(model: bytes, location: str) -> Tokenizer:
    """Return the tokenizer of a pretrained model's own SentencePiece model.

    Raises ValueError, naming `location`, for one that is damaged, or whose pieces do not spell
    text as this package's do.
    """
    try:
        pieces = _Model.FromString(model).pieces
    except Exception as error:  # protobuf's decoding error has no public name
        raise ValueError(f"{location}: not a SentencePiece model") from error
    if not pieces or pieces[0].type != _Piece.Type.UNKNOWN or pieces[0].piece != UNKNOWN_PIECE:
        raise ValueError(f"{location}: its first piece must be {UNKNOWN_PIECE}, for unknown text")
    return Tokenizer.read(with_blank(model), location)


def model_of_json(fields: Mapping[str, object], location: str) -> bytes:
    """Return the SentencePiece model that a tokenizer.json was converted from.

    A byte-pair merge of transformers is a piece with a score: the earlier the merge, the higher.
    Labels that the conversion appended, such as the blank, are left out. Raises ValueError, naming
    `location`, for a tokenizer of another kind.
    """
    try:
        parts = cast(Mapping[str, dict], fields)
        model = parts["model"]
        if model["type"] != "BPE":
            raise ValueError(f"{location}: model.type = {model['type']!r}: must be 'BPE'")
        pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if [model["vocab"][piece] for piece in pieces] != list(range(len(pieces))):
            raise ValueError(f"{location}: model.vocab: must number its pieces from 0")
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        special = {token["content"]: token["special"] for token in parts.get("added_tokens") or []}
        normalizer = _normalizer(fields.get("normalizer"), location)
        unknown = model["unk_token"]
        scheme = (parts.get("pre_tokenizer") or {}).get("prepend_scheme")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{location}: not a tokenizer of transformers: {error!r}") from error
    rank: dict[str, int] = {}
    for first, second in merges:
        rank.setdefault(first + second, len(rank))
    proto = _Model()
    for piece in pieces:
        type = _type(piece, special, unknown)
        proto.pieces.add(piece=piece, score=-float(rank.get(piece, len(rank))), type=type)
    has_bytes = any(piece.type == _Piece.Type.BYTE for piece in proto.pieces)
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback = spec.BPE, len(pieces), has_bytes
    spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = model["vocab"][unknown], -1, -1, -1
    proto.normalizer_spec.CopyFrom(normalizer)
    proto.normalizer_spec.add_dummy_prefix = scheme != "never"
    return proto.SerializeToString()


def _type(piece: str, special: Mapping[str, bool], unknown: str) -> int:
    if piece == unknown:
        return _Piece.Type.UNKNOWN
    if piece in special:
        return _Piece.Type.CONTROL if special[piece] else _Piece.Type.USER_DEFINED
    return _Piece.Type.BYTE if re.fullmatch("<0x[0-9A-F]{2}>", piece) else _Piece.Type.NORMAL


def _normalizer(normalizer: object, location: str):
    """Return SentencePiece's rules of a tokenizer.json's normalizer, named where they are known."""
    spec = _NormalizerSpec()
    spec.name, spec.remove_extra_whitespaces, spec.escape_whitespaces = "identity", True, True
    for part in _parts(normalizer):
        if part["type"] == "Precompiled":
            charsmap = base64.b64decode(part["precompiled_charsmap"])
            known = [name for name in _NAMED if charsmap == _charsmap(name)]
            spec.name, spec.precompiled_charsmap = (known or ["unnamed"])[0], charsmap
        elif part["type"] not in ("Strip", "Replace"):
            rule = "must be one of Precompiled, Strip, Replace"
            raise ValueError(f"{location}: normalizer {part['type']!r}: {rule}")
    return spec


def _charsmap(name: Normalization) -> bytes:
    return _NormalizerSpec.FromString(normalization_rules(name)).precompiled_charsmap


def _parts(normalizer) -> Iterator[Mapping[str, str]]:
    if normalizer is None:
        return
    if normalizer["type"] == "Sequence":
        for part in normalizer["normalizers"]:
            yield from _parts(part)
    else:
        yield normalizer
