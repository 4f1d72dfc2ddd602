"""Word error rate (WER): alignment, counts, rates and their confidence intervals.

A rate is a fraction of the reference words: 0.123 is a WER of 12.3 %. Words are compared exactly,
case and punctuation included; normalize texts first to ignore these. Texts are lists of words; with
lists of characters the same functions compute the character error rate.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein


class Edit(NamedTuple):
    """One column of an alignment; a side without a word is None."""

    op: Literal["equal", "substitute", "delete", "insert"]
    reference: str | None
    hypothesis: str | None


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Numbers of edits that turn references into hypotheses; counts of utterances can be added."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    reference_words: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors per reference word, a fraction that may exceed 1; nan without reference words."""
        return self.errors / self.reference_words if self.reference_words else float("nan")

    def __add__(self, other: "ErrorCounts") -> "ErrorCounts":
        return ErrorCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.reference_words + other.reference_words,
        )


def align(reference: list[str], hypothesis: list[str]) -> list[Edit]:
    """Return a shortest edit script (Levenshtein distance, every edit costs 1), column by column.

    The reference sides that are not None spell the reference, the hypothesis sides the hypothesis.
    Among equally short scripts the choice is deterministic.
    """
    columns = []
    for block in Levenshtein.opcodes(reference, hypothesis):
        before = reference[block.src_start : block.src_end]
        after = hypothesis[block.dest_start : block.dest_end]
        match block.tag:
            case "equal":
                columns += [Edit("equal", *pair) for pair in zip(before, after)]
            case "replace":
                columns += [Edit("substitute", *pair) for pair in zip(before, after)]
            case "delete":
                columns += [Edit("delete", word, None) for word in before]
            case "insert":
                columns += [Edit("insert", None, word) for word in after]
    return columns


def count_errors(reference: list[str], hypothesis: list[str]) -> ErrorCounts:
    """Count the edits of `align`. With an empty reference, every word is an insertion."""
    tags = Counter(edit.tag for edit in Levenshtein.editops(reference, hypothesis))
    return ErrorCounts(tags["replace"], tags["delete"], tags["insert"], len(reference))


def count_word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Count the errors between two transcripts, whose words are separated by whitespace."""
    return count_errors(reference.split(), hypothesis.split())


def characters(text: str, *, spaces: bool) -> list[str]:
    """Return the characters (code points) of a text, with one space between words or with none."""
    return list((" " if spaces else "").join(text.split()))


def count_character_errors(reference: str, hypothesis: str, *, spaces: bool = True) -> ErrorCounts:
    """Count the errors in `characters`. `reference_words` is the number of characters."""
    return count_errors(*(characters(text, spaces=spaces) for text in (reference, hypothesis)))


def total(counts: Iterable[ErrorCounts]) -> ErrorCounts:
    """Return the sum, whose rate is the corpus's: long utterances weigh more than short ones."""
    return sum(counts, start=ErrorCounts())


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the WER of a corpus as a fraction: all errors over all reference words, nan without.

    Raises ValueError unless there is one hypothesis for each reference.
    """
    if len(references) != len(hypotheses):
        raise ValueError(
            f"len(hypotheses) = {len(hypotheses)}: must equal len(references) = {len(references)}"
        )
    return total(map(count_word_errors, references, hypotheses)).rate


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the CER of a corpus, without spaces, as a fraction; nan without characters."""
    pairs = zip(references, hypotheses, strict=True)
    return total(count_character_errors(*pair, spaces=False) for pair in pairs).rate


def sentence_error_rate(counts: Sequence[ErrorCounts]) -> float:
    """Return the fraction of utterances with at least one error; nan without utterances."""
    return float(np.mean([c.errors > 0 for c in counts])) if counts else float("nan")


def counts_by(keys: Sequence[str], counts: Sequence[ErrorCounts]) -> dict[str, ErrorCounts]:
    """Sum the counts of each key, such as a speaker, in order of appearance."""
    sums: dict[str, ErrorCounts] = {}
    for key, count in zip(keys, counts, strict=True):
        sums[key] = sums.get(key, ErrorCounts()) + count
    return sums


def bootstrap_interval(
    counts: Sequence[ErrorCounts], *, seed: int, samples: int = 1000, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the bootstrap interval of the corpus's rate (Bisani and Ney, ICASSP 2004).

    `samples` corpora of the same number of utterances are drawn with replacement; the interval
    spans the middle `confidence` of their rates. It reflects the choice of utterances, not of
    speakers: with few speakers it is too narrow. Draws without reference words have no rate and are
    ignored.

    Returns (low, high) as fractions, the same for the same seed; nan if no draw has a rate. Raises
    ValueError for samples below 1 and for a confidence outside 0..1.
    """
    if samples < 1:
        raise ValueError(f"samples = {samples!r}: must be at least 1")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence!r}: must be between 0 and 1")
    errors = np.array([c.errors for c in counts], np.int64)
    words = np.array([c.reference_words for c in counts], np.int64)
    if not words.any():
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn_errors, drawn_words = np.empty((2, samples), np.int64)
    # One corpus at a time: all at once would need samples x utterances indices in memory.
    for sample in range(samples):
        drawn = rng.integers(len(counts), size=len(counts))
        drawn_errors[sample], drawn_words[sample] = errors[drawn].sum(), words[drawn].sum()
    has_words = drawn_words > 0
    rates = drawn_errors[has_words] / drawn_words[has_words]
    if not rates.size:
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)
