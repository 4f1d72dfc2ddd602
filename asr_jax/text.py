"""Conversion of transcripts to labels and back by SentencePiece."""

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, SupportsInt

import numpy as np
import sentencepiece
from jaxtyping import Int32

BLANK_ID, UNKNOWN_ID = 0, 1
# The character that stands for a space in SentencePiece's pieces.
SPACE_PIECE = "\u2581"
ERRORS_ONLY = 2


def collapse_white_space(text: str) -> str:
    """Replace each run of white space by one space, and strip both ends."""
    return " ".join(text.split())


class Tokenizer:
    """A SentencePiece model (Kudo and Richardson, arXiv 1808.06226) whose ids are the labels.

    Id 0 is the blank, which is never encoded; id 1 stands for characters that the model lacks.
    There is no begin or end of sentence. Text is not normalized except for its white space, so that

        decode(encode(text)) == collapse_white_space(text)
        encode(a + " " + b) == encode(a) + separator + encode(b)

    hold for all text without `unknown_characters`.
    """

    def __init__(self, model: bytes):
        self.model = model
        """The serialized model, the contents of the file that `load` reads."""
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._characters = {
            piece
            for piece in map(self._processor.id_to_piece, range(2, self.vocabulary_size))
            if len(piece) == 1
        }
        # The text that SentencePiece decodes each label to.
        self._surfaces = ["", " \u2047 "] + [
            self._processor.id_to_piece(id).replace(SPACE_PIECE, " ")
            for id in range(2, self.vocabulary_size)
        ]
        first = self._processor.encode("x", out_type=str)[0]
        space = self._processor.piece_to_id(SPACE_PIECE)
        self.separator: list[int] = [] if first.startswith(SPACE_PIECE) else [space]
        """Labels between two joined transcripts; none if words begin with their space."""

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a model that `train` wrote. Raises ValueError for a missing or unsuitable file."""
        try:
            tokenizer = cls(Path(path).read_bytes())
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from error
        except RuntimeError as error:
            raise ValueError(f"{path}: not a SentencePiece model") from error
        if tokenizer._processor.pad_id() != BLANK_ID:
            raise ValueError(f"{path}: a SentencePiece model without the blank as id {BLANK_ID}")
        return tokenizer

    @classmethod
    def train(
        cls,
        transcripts: Iterable[str],
        *,
        kind: Literal["unigram", "bpe", "char"],
        vocabulary_size: int,
        path: str | Path,
    ) -> "Tokenizer":
        """Train on `transcripts`, every character of which becomes a piece, and write `path`.

        `vocabulary_size` includes blank and unknown. It is ignored for char, which has one piece
        per character, the space included. Raises ValueError for a size that these transcripts do
        not allow, naming the nearest that they allow.
        """
        texts = [text for text in map(collapse_white_space, transcripts) if text]
        if not texts:
            raise ValueError("transcripts: all are empty, nothing to train a tokenizer on")
        smallest_size = len(set().union(" ", *texts) - {SPACE_PIECE}) + 2
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
        Path(path).write_bytes(model)
        return cls(model)

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
        surfaces = [self._surfaces[int(id)] for id in ids]
        spelled_by = [index for index, surface in enumerate(surfaces) for _ in surface]
        return [
            (word[0], list(dict.fromkeys(spelled_by[word.start() : word.end()])))
            for word in re.finditer(r"\S+", "".join(surfaces))
        ]

    def unknown_characters(self, text: str) -> str:
        """Return the characters of `text` that no label stands for, each once, sorted."""
        # SentencePiece encodes SPACE_PIECE as a space, so as a character it is unknown.
        known = {" " if piece == SPACE_PIECE else piece for piece in self._characters}
        return "".join(sorted(set(collapse_white_space(text)) - known))


def _trained_model(
    texts: list[str], kind: Literal["unigram", "bpe", "char"], vocabulary_size: int
) -> bytes:
    """Train a SentencePiece model. Raises RuntimeError if it does not allow the size."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
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
        pad_piece="<blk>",
        unk_id=UNKNOWN_ID,
        bos_id=-1,
        eos_id=-1,
        minloglevel=ERRORS_ONLY,
    )
    return model.getvalue()
