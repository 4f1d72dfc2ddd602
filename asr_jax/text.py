"""Conversion of transcripts to labels and back by SentencePiece."""

import collections
import functools
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, SupportsInt, get_args

import numpy as np
import sentencepiece
from jaxtyping import Int32
from sentencepiece import sentencepiece_model_pb2

BLANK_ID, UNKNOWN_ID = 0, 1
BLANK_PIECE, UNKNOWN_PIECE = "<blk>", "<unk>"
# Fewer characters of text than this are trained on as characters: 20 hours of English, about.
FEW_CHARACTERS = 1_000_000
# Characters of text for each piece, where their number is chosen, and the numbers to choose from.
CHARACTERS_PER_PIECE, CHOSEN_SIZES = 5_000, (256, 512, 1024)
# The character that stands for a space in SentencePiece's pieces.
SPACE_PIECE = "\u2581"
RESERVED = frozenset(("\0", SPACE_PIECE))
"""Characters that no SentencePiece model can hold as pieces of their own."""
ERRORS_ONLY = 2
Normalization = Literal["none", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf", "lowercase", "other"]
"""How a tokenizer rewrites text, as in TokenizerConfig."""
# SentencePiece's trainer leaves out sentences with this character.
_LEFT_OUT = "\u2585"
# Protocol buffers create their classes at run time, so type checkers do not know them.
_Model = vars(sentencepiece_model_pb2)["ModelProto"]
_NormalizerSpec = vars(sentencepiece_model_pb2)["NormalizerSpec"]
_UNKNOWN, _CONTROL, _BYTE = map(_Model.SentencePiece.Type.Value, ("UNKNOWN", "CONTROL", "BYTE"))


def collapse_white_space(text: str) -> str:
    """Replace each run of white space by one space, and strip both ends."""
    return " ".join(text.split())


def chosen_kind(transcripts: Iterable[str]) -> tuple[Literal["unigram", "char"], int]:
    """Return the kind of pieces and the vocabulary size that suit an amount of text.

    Little text is spelled in characters, and so is a script whose characters fill half of the
    vocabulary, such as Chinese. More text has one of the CHOSEN_SIZES: about one piece for
    CHARACTERS_PER_PIECE characters.
    """
    characters = collections.Counter()
    for text in transcripts:
        characters.update(text)
    amount = characters.total()
    fitting = [n for n in CHOSEN_SIZES if n <= max(CHOSEN_SIZES[0], amount / CHARACTERS_PER_PIECE)]
    if amount < FEW_CHARACTERS or len(characters) > fitting[-1] / 2:
        return "char", len(characters) + 2
    return "unigram", fitting[-1]


def folded(texts: Iterable[str], normalization: Normalization) -> list[str]:
    """Return each text as a tokenizer with this normalization spells it."""
    if normalization == "none":
        return [collapse_white_space(text) for text in texts]
    normalizer = sentencepiece.SentencePieceNormalizer(
        normalizer_spec=normalization_rules(normalization),
        add_dummy_prefix=False,
        escape_whitespaces=False,
    )
    return [
        collapse_white_space(normalizer.normalize(collapse_white_space(text))) for text in texts
    ]


def holds_reserved(text: str) -> bool:
    """Return whether `text` has any of the RESERVED characters."""
    return any(character in text for character in RESERVED)


class Tokenizer:
    """A SentencePiece model (Kudo and Richardson, arXiv 1808.06226) whose ids are the labels.

    Id 0 is the blank, which is never encoded; id 1 stands for characters that the model lacks.
    There is no begin or end of sentence.

        decode(encode(text)) == normalize(text)
        encode(a + " " + b) == encode(a) + separator + encode(b)

    hold for all text without `unknown_characters`. A model normalizes white space, and letters by
    its normalization.
    """

    def __init__(self, model: bytes):
        self.model = model
        """The serialized model, the contents of the file that `train` writes."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        # The text that SentencePiece decodes each label to.
        self._surfaces = ["", " \u2047 "] + [
            ""
            if self._processor.is_control(id)
            else self._processor.id_to_piece(id).replace(SPACE_PIECE, " ")
            for id in range(2, self.vocabulary_size)
        ]
        self._bytes = {id for id in range(self.vocabulary_size) if self._processor.is_byte(id)}
        first = self._processor.encode("x", out_type=str)[0]
        space = self._processor.piece_to_id(SPACE_PIECE)
        self.separator: list[int] = [] if first.startswith(SPACE_PIECE) else [space]
        """Labels between two joined transcripts; none if words begin with their space."""
        spec = _Model.FromString(model).normalizer_spec
        self.folding: str = (spec.name or "unnamed") if spec.precompiled_charsmap else ""
        """Name of the model's Unicode normalization, such as nmt_nfkc_cf; empty for none."""

    @property
    def normalization(self) -> Normalization:
        """The model's Unicode normalization, as in TokenizerConfig."""
        names: dict[str, Normalization] = {"": "none", **{n: n for n in get_args(Normalization)}}
        return names.get(self.folding, "other")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a model that `train` or another program wrote.

        Another program's ids are reordered: blank, unknown, then its pieces without control
        symbols such as <s>. A model whose ids begin with blank and unknown is taken as it is; its
        control symbols are never encoded, and print as nothing. Raises ValueError for a missing
        file, and for a model whose labels would not spell the text, naming the property.
        """
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        return cls.read(model, str(path))

    @classmethod
    def read(cls, model: bytes, location: str) -> "Tokenizer":
        """Return the tokenizer of a serialized model, like `load`; errors name `location`."""
        try:
            sentencepiece.SentencePieceProcessor().load_from_serialized_proto(model)
            return cls(_relabeled(model))
        except RuntimeError as error:
            raise ValueError(f"{location}: not a SentencePiece model") from error
        except ValueError as error:
            raise ValueError(f"{location}: {error}") from error

    @classmethod
    def train(
        cls,
        transcripts: Iterable[str],
        *,
        kind: Literal["unigram", "bpe", "char"],
        vocabulary_size: int,
        path: str | Path,
        normalization: Normalization = "none",
    ) -> "Tokenizer":
        """Train on `transcripts`, every character of which becomes a piece, and write `path`.

        The model normalizes all text by `normalization`, as it does the transcripts here.
        Transcripts with RESERVED characters are left out. `vocabulary_size` includes blank and
        unknown. It is ignored for char, which has one piece per character, the space included.
        Raises ValueError for a size that these transcripts do not allow, naming the nearest that
        they allow.
        """
        given = [text for text in folded(transcripts, normalization) if text]
        texts = [text for text in given if not holds_reserved(text)]
        if not texts:
            reserved = " or hold U+0000 or U+2581" if given else ""
            raise ValueError(
                f"transcripts: all are empty{reserved}, nothing to train a tokenizer on"
            )
        smallest_size = len(set().union(" ", *texts)) + 2
        if kind == "char":
            vocabulary_size = smallest_size
        if vocabulary_size < smallest_size:
            raise ValueError(
                f"tokenizer.vocabulary_size = {vocabulary_size}: blank, unknown and the characters "
                f"of these transcripts need at least {smallest_size}"
            )
        try:
            model = _trained_model(texts, kind, vocabulary_size)
        except RuntimeError as error:
            largest = re.search(r"set it to a value <= (\d+)", str(error))
            rule = (
                f"these transcripts allow at most {largest[1]}"
                if largest
                else f"SentencePiece reports: {' '.join(str(error).split())}"
            )
            raise ValueError(f"tokenizer.vocabulary_size = {vocabulary_size}: {rule}") from error
        if normalization != "none":
            model = _with_normalization(model, normalization)
        Path(path).write_bytes(model)
        return cls(model)

    def with_pieces(self, added: Sequence[str]) -> "Tokenizer":
        """Return a tokenizer with further labels, which spell their text wherever it occurs.

        All other labels keep their ids. Raises ValueError for a piece that exists, is empty, or has
        white space or a character of RESERVED.
        """
        known = set(self.pieces)
        for n, piece in enumerate(added):
            rule = ""
            if not piece or piece != "".join(piece.split()) or holds_reserved(piece):
                rule = "must be text without white space, U+0000 and U+2581"
            elif piece in known or piece in added[:n]:
                rule = "is a piece already"
            if rule:
                raise ValueError(f"tokenizer.added_pieces = {piece!r}: {rule}")
        pieces = [_Model.SentencePiece(piece=piece, type="USER_DEFINED") for piece in added]
        # Protocol buffers merge what stands twice.
        return Tokenizer(self.model + _Model(pieces=pieces).SerializeToString())

    @property
    def kind(self) -> Literal["unigram", "bpe", "char"]:
        """Kind of pieces, as in TokenizerConfig."""
        kinds: dict[int, Literal["bpe", "char"]] = {2: "bpe", 4: "char"}
        return kinds.get(_Model.FromString(self.model).trainer_spec.model_type, "unigram")

    @property
    def vocabulary_size(self) -> int:
        """Number of labels, blank and unknown included."""
        return self._processor.get_piece_size()

    @property
    def pieces(self) -> list[str]:
        """The piece of each label, with SPACE_PIECE for a space; blank and unknown have names."""
        return [self._processor.id_to_piece(id) for id in range(self.vocabulary_size)]

    @property
    def scores(self) -> list[float]:
        """SentencePiece's score of each piece."""
        return [self._processor.get_score(id) for id in range(self.vocabulary_size)]

    @property
    def characters(self) -> set[str]:
        """Characters that a label of their own stands for, the space included."""
        return {" " if piece == SPACE_PIECE else piece for piece in self.pieces if len(piece) == 1}

    def normalize(self, text: str) -> str:
        """Return `text` as its labels spell it: white space collapsed, and folded by the model."""
        text = collapse_white_space(text)
        if not self.folding:
            return text
        return collapse_white_space(self._processor.normalize(text).replace(SPACE_PIECE, " "))

    def encode(self, text: str) -> list[int]:
        """Return the labels of `text`."""
        return self._processor.encode(collapse_white_space(text))

    def encode_all(self, texts: Sequence[str]) -> list[Int32[np.ndarray, " _"]]:
        """Return `encode` of each text, computed with a thread for every core."""
        # SentencePiece itself collapses plain spaces; all other white space is not printable.
        texts = [text if text.isprintable() else collapse_white_space(text) for text in texts]
        # Lists of Python integers would take half as long again.
        return self._processor.encode(texts, return_type="numpy", num_threads=-1)

    def decode(self, ids: Iterable[SupportsInt]) -> str:
        """Return the text of labels: the `words`, with a single space between two words."""
        return collapse_white_space(self._processor.decode([int(id) for id in ids]))

    def words(self, ids: Iterable[SupportsInt]) -> list[tuple[str, list[int]]]:
        """Return the words of `decode(ids)`, each with the indices in `ids` that spell it.

        A label that only separates words belongs to no word.
        """
        labels = [int(id) for id in ids]
        text, spelled_by = "", list[list[int]]()
        for run in self._runs(labels):
            # Bytes spell their characters together.
            is_bytes = labels[run[0]] in self._bytes
            surface = (
                self._processor.decode([labels[index] for index in run])
                if is_bytes
                else self._surfaces[labels[run[0]]]
            )
            text += surface
            spelled_by += [run] * len(surface)
        return [
            (word[0], list(dict.fromkeys(itertools.chain(*spelled_by[word.start() : word.end()]))))
            for word in re.finditer(r"\S+", text)
        ]

    def _runs(self, labels: Sequence[int]) -> Iterator[list[int]]:
        """Yield the index of every label; those of adjacent bytes together."""
        indices = range(len(labels))
        for is_bytes, run in itertools.groupby(indices, lambda n: labels[n] in self._bytes):
            places = [*run]
            yield from [places] if is_bytes else ([place] for place in places)

    def unknown_characters(self, text: str) -> str:
        """Return the characters of `text` that no label stands for, each once, sorted.

        A model that folds is asked about the folded text.
        """
        pieces = self._processor.encode(collapse_white_space(text), out_type=str)
        labelled = zip(pieces, self.encode(text), strict=True)
        unknown = {c for piece, label in labelled if label == UNKNOWN_ID for c in piece}
        # SentencePiece encodes SPACE_PIECE as a space, so as a character it is unknown.
        return "".join(sorted(unknown - {SPACE_PIECE} | {SPACE_PIECE} & set(text)))


def _trained_model(
    texts: list[str], kind: Literal["unigram", "bpe", "char"], vocabulary_size: int
) -> bytes:
    """Train a SentencePiece model. Raises RuntimeError if it does not allow the size.

    SentencePiece leaves out sentences with a certain character, and cuts out text that is the name
    of a control symbol. Where `texts` contain either, they are trained under other names.
    """
    is_ordinary = not any(
        name in text for text in texts for name in (_LEFT_OUT, BLANK_PIECE, UNKNOWN_PIECE)
    )
    in_texts, in_names = _LEFT_OUT, ""
    train = sentencepiece.SentencePieceTrainer.train
    if not is_ordinary:
        alphabet = set().union(*texts)
        spares = (chr(code) for code in range(0xE000, 0x110000) if chr(code) not in alphabet)
        # Two characters, since a name and the first of them may occur in a text side by side.
        in_texts, in_names = next(spares), next(spares)
        # A model holds the names that are passed, also where they are the default.
        train = functools.partial(train, unk_piece=UNKNOWN_PIECE + in_names)
    model = io.BytesIO()
    train(
        sentence_iterator=(text.replace(_LEFT_OUT, in_texts) for text in texts),
        model_writer=model,
        model_type=kind,
        vocab_size=vocabulary_size,
        hard_vocab_limit=kind != "char",
        # Every word begins with its space, also the first one; for characters there is none.
        add_dummy_prefix=kind != "char",
        character_coverage=1.0,
        # The space is needed even if each transcript is one word, since transcripts may be joined.
        required_chars=SPACE_PIECE,
        normalization_rule_name="identity",
        # Longer sentences would be left out, with characters that only they contain.
        max_sentence_length=max(4096, *(len(text.encode()) for text in texts)),
        pad_id=BLANK_ID,
        pad_piece=BLANK_PIECE + in_names,
        unk_id=UNKNOWN_ID,
        bos_id=-1,
        eos_id=-1,
        minloglevel=ERRORS_ONLY,
    )
    if is_ordinary:
        return model.getvalue()
    renamed = [
        (piece.piece.replace(in_texts, _LEFT_OUT), piece.score, piece.type)
        for piece in _Model.FromString(model.getvalue()).pieces[2:]
    ]
    return _with_pieces(model.getvalue(), renamed)


@functools.cache
def normalization_rules(normalization: Normalization) -> bytes:
    """Return SentencePiece's rules of a normalization, serialized.

    Its own rules are those of its names. `lowercase` is its `nmt_nfkc` followed by the lower case
    of each character: its `_cf` folds case, which misspells words (Greek ς becomes σ).
    """
    if normalization != "lowercase":
        return sentencepiece.SentencePieceNormalizer(
            rule_name=normalization
        ).serialized_normalizer_spec()
    sentencepiece.set_min_log_level(ERRORS_ONLY)
    characters = map(chr, (*range(0xD800), *range(0xE000, 0x110000)))
    rules = {c: c.lower() for c in characters if c != c.lower()}
    nmt_nfkc = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc").decompile()
    # The lower case of a capital sigma depends on its word, so characters are taken one by one.
    rules |= {text: "".join(map(str.lower, becomes)) for text, becomes in nmt_nfkc}
    return sentencepiece.SentencePieceNormalizer(
        norm_map=[*rules.items()]
    ).serialized_normalizer_spec()


def _with_normalization(model: bytes, normalization: Normalization) -> bytes:
    """Return a model, trained on normalized text, that normalizes text itself."""
    proto = _Model.FromString(model)
    spec = _NormalizerSpec.FromString(normalization_rules(normalization))
    proto.normalizer_spec.name = normalization
    proto.normalizer_spec.precompiled_charsmap = spec.precompiled_charsmap
    return proto.SerializeToString()


def _with_pieces(model: bytes, pieces: Sequence[tuple[str, float, int]]) -> bytes:
    """Return a model with blank, unknown and these pieces, each a text, a score and a type."""
    proto = _Model.FromString(model)
    del proto.pieces[:]
    first = [(BLANK_PIECE, 0.0, _CONTROL), (UNKNOWN_PIECE, 0.0, _UNKNOWN)]
    for piece, score, type in [*first, *pieces]:
        proto.pieces.add(piece=piece, score=score, type=type)
    spec = proto.trainer_spec
    spec.pad_piece, spec.unk_piece = BLANK_PIECE, UNKNOWN_PIECE
    spec.pad_id, spec.unk_id, spec.bos_id, spec.eos_id = BLANK_ID, UNKNOWN_ID, -1, -1
    spec.ClearField("unk_surface")
    proto.normalizer_spec.remove_extra_whitespaces = True
    return proto.SerializeToString()


def _relabeled(model: bytes) -> bytes:
    """Return a model whose ids are blank, unknown, then the pieces, without control symbols.

    A model of this package, also an imported one, is returned as it is, with control symbols and
    bytes. Raises ValueError as `_require_invertible`.
    """
    proto = _Model.FromString(model)
    first = [(piece.piece, piece.type) for piece in proto.pieces[:2]]
    spec = proto.trainer_spec
    is_own = (
        first == [(BLANK_PIECE, _CONTROL), (UNKNOWN_PIECE, _UNKNOWN)]
        and (spec.pad_id, spec.unk_id, spec.bos_id, spec.eos_id) == (BLANK_ID, UNKNOWN_ID, -1, -1)
        and proto.normalizer_spec.remove_extra_whitespaces
    )
    _require_invertible(model, has_bytes=is_own)
    kept = [
        (piece.piece, piece.score, piece.type)
        for piece in proto.pieces
        # icefall's models hold the blank as a user-defined symbol.
        if piece.type not in (_UNKNOWN, _CONTROL) and piece.piece != BLANK_PIECE
    ]
    return model if is_own else _with_pieces(model, kept)


def _require_invertible(model: bytes, *, has_bytes: bool) -> None:
    """Raise ValueError for a model with which the laws of `Tokenizer` do not hold."""
    proto = _Model.FromString(model)
    # Protocol buffers return bytes for what is not UTF-8.
    if not all(isinstance(piece.piece, str) for piece in proto.pieces):
        raise ValueError("a SentencePiece model with a piece that is not UTF-8")
    pieces = [piece.piece for piece in proto.pieces if piece.type not in (_UNKNOWN, _CONTROL)]
    words = [piece for piece in pieces if piece.strip(SPACE_PIECE)]
    spaced = [piece for piece in pieces if any(map(str.isspace, piece))]
    spanning = [piece for piece in words if SPACE_PIECE in piece.lstrip(SPACE_PIECE)]
    wrong = ""
    if proto.trainer_spec.treat_whitespace_as_suffix:
        wrong = "treat_whitespace_as_suffix = true: must have the space before the word"
    elif not has_bytes and any(piece.type == _BYTE for piece in proto.pieces):
        wrong = "byte_fallback = true: pieces that are bytes are not supported"
    elif proto.trainer_spec.model_type == proto.trainer_spec.WORD:
        wrong = "model_type = word: must be unigram, bpe or char"
    elif spaced:
        wrong = f"piece {spaced[0]!r}: must not contain white space"
    elif spanning:
        wrong = f"piece {spanning[0]!r}: must not span several words (split_by_whitespace = true)"
    elif UNKNOWN_PIECE in pieces:
        wrong = f"piece {UNKNOWN_PIECE!r}: must stand for unknown characters only"
    elif SPACE_PIECE not in pieces:
        wrong = f"has no piece {SPACE_PIECE!r} for the space alone"
    elif not proto.normalizer_spec.add_dummy_prefix and any(
        piece.startswith(SPACE_PIECE) for piece in words
    ):
        wrong = "add_dummy_prefix = false: the first word must begin with its space like the others"
    elif proto.denormalizer_spec.precompiled_charsmap:
        wrong = "denormalizer: must not rewrite the decoded text"
    if wrong:
        raise ValueError(f"a SentencePiece model that cannot be used, {wrong}")
