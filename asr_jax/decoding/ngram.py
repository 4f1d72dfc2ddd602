"""N-gram language models over a tokenizer's pieces, from ARPA files or estimated from text."""

import collections
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from asr_jax.decoding.automaton import Automaton, build_automaton
from asr_jax.text import SPACE_PIECE, UNKNOWN_ID, Tokenizer
from asr_jax.text_files import EncodingError, numbered_lines, transcript

# Labels of the beginning and the end of a sentence.
BEGIN, END = -1, -2
NGram = tuple[int, ...]
# SRILM writes this for the logarithm of 0; -inf means the same.
_LOG10_OF_ZERO = -99.0
# An ARPA file may begin with comments, as those of CMU's toolkit do.
_MOST_COMMENT_LINES = 1000


class Entry(NamedTuple):
    """The weights that an n-gram model stores for one n-gram."""

    log_probability: float
    """Log-probability of the last label given those before it, in nats."""
    back_off: float = 0.0
    """Added where the model has no longer n-gram with this prefix, in nats."""


NGrams = dict[NGram, Entry]


def load_language_model(
    path: Path,
    tokenizer: Tokenizer,
    *,
    order: int,
    weight: float,
    warn: Callable[[str], None] = lambda text: None,
) -> Automaton:
    r"""Load an ARPA file over the tokenizer's pieces, or estimate a model from a text.

    A file is ARPA if one of its first lines is \data\, or if it is named .arpa; either may be gzip.
    A text has one sentence per line and gives an n-gram model of `order`. Lines with characters
    outside the tokenizer are left out; `warn` receives a message with their number. Gains are
    log-probabilities times `weight`. Raises ValueError for a file that cannot be read, with the
    line number, and for a text in which every line has such characters.
    """
    lines = _lines(path)
    first = list(itertools.islice(lines, _MOST_COMMENT_LINES))
    lines = itertools.chain(first, lines)
    is_named_arpa = path.name.lower().endswith((".arpa", ".arpa.gz"))
    if is_named_arpa or any(line == "\\data\\" for _, line in first):
        ngrams = _parse_arpa(path, lines, tokenizer.pieces, warn)
    else:
        sentences = _sentences(path, lines, tokenizer, warn)
        ngrams = estimate(sentences, order, tokenizer.vocabulary_size)
    if weight < 0:
        ngrams = _without_zeros(ngrams)
    return ngram_automaton(ngrams, vocabulary_size=tokenizer.vocabulary_size, weight=weight)


def _sentences(
    path: Path,
    numbered: Iterable[tuple[int, str]],
    tokenizer: Tokenizer,
    warn: Callable[[str], None],
) -> list[list[int]]:
    """Return a text's sentences as labels."""
    lines = [transcript(line) for _, line in numbered]
    if not lines:
        raise ValueError(f"{path}: contains no text")
    encoded, rejected = [], []
    for line, labels in zip(lines, tokenizer.encode_all(lines)):
        # The tokenizer encodes a literal SPACE_PIECE, but as a space.
        if UNKNOWN_ID in labels or SPACE_PIECE in line:
            rejected.append(line)
        else:
            encoded.append(labels.tolist())
    if rejected:
        unknown = tokenizer.unknown_characters(" ".join(rejected))
        lacking = f"{path}: {len(rejected)} of {len(lines)} lines have characters that the "
        lacking += f"model's tokenizer lacks: {unknown[:20]!r}"
        if not encoded:
            raise ValueError(lacking)
        warn(f"{lacking}; they are left out")
    return encoded


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, stripped and in form NFC, with their numbers."""
    try:
        for number, line in numbered_lines(path):
            yield number, unicodedata.normalize("NFC", line.strip())
    except EncodingError as error:
        raise ValueError(
            f"{error}; for a KenLM binary, pass the ARPA file that it was built from"
        ) from None


def read_arpa(
    path: Path, pieces: Sequence[str], *, warn: Callable[[str], None] = lambda text: None
) -> NGrams:
    r"""Read an ARPA file: \data\, counts, and per order lines of `log10 p, pieces, log10 back-off`.

    Words must be `pieces`, <s>, </s> or <unk>. Pieces without a unigram get the probability of
    <unk>, or without <unk> that of the least probable piece. N-grams that continue after </s> are
    ignored. Without <s>, a sentence begins like its rest; without </s>, its end has no score;
    `warn` receives a message about either. Raises ValueError for an invalid file, with the line
    number.
    """
    return _parse_arpa(path, _lines(path), pieces, warn)


def _parse_arpa(
    path: Path,
    lines: Iterable[tuple[int, str]],
    pieces: Sequence[str],
    warn: Callable[[str], None],
) -> NGrams:
    """Return the n-grams in the lines of an ARPA file, as `read_arpa` describes."""
    labels = {piece: label for label, piece in enumerate(pieces)}
    labels = {"<UNK>": UNKNOWN_ID} | labels
    labels |= {"<s>": BEGIN, "</s>": END, "<unk>": UNKNOWN_ID}
    ngrams: NGrams = {}
    counts: dict[int, int] = {}
    section, order, left = "", 0, 0
    for number, line in lines:
        try:
            if not section and line == "iARPA":
                raise ValueError(
                    "iARPA, IRSTLM's own format; convert it by compile-lm FILE --text=yes OUT.arpa"
                )
            if section == "\\end\\" or not (section or line == "\\data\\"):
                continue
            if line.startswith("\\"):
                if left:
                    excess = "too few" if left > 0 else "too many"
                    raise ValueError(f"{line}: {abs(left)} n-grams {excess} before this section")
                section, order = _section(line, counts, order)
                left = counts.get(order, 0)
            elif section == "\\data\\":
                if not (match := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)):
                    raise ValueError(f"{line!r}: must be 'ngram N=COUNT'")
                counts[int(match[1])] = int(match[2])
            else:
                left -= 1
                ngram, entry = _read_ngram(line.split(), order, labels)
                if END in ngram[:-1] or BEGIN in ngram[1:]:
                    continue  # No sentence contains it.
                if ngram in ngrams:
                    raise ValueError(f"{line!r}: the n-gram is listed twice")
                if order > 1 and ngram[:-1] not in ngrams:
                    raise ValueError(f"{line!r}: the n-gram's prefix is not listed")
                # The longest n-grams are no context, so that their back-off has no meaning.
                ngrams[ngram] = entry if order < max(counts) else Entry(entry.log_probability)
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from None
    if section != "\\end\\":
        raise ValueError(f"{path}: ends before \\end\\" if section else f"{path}: has no \\data\\")
    if (BEGIN,) not in ngrams:
        warn(f"{path}: has no <s>; the beginning of a transcript is scored like its rest")
    if (END,) not in ngrams:
        warn(f"{path}: has no </s>; the end of a transcript is not scored")
    _add_missing_pieces(ngrams, len(pieces))
    return ngrams


def _add_missing_pieces(ngrams: NGrams, vocabulary_size: int) -> None:
    """Give pieces without a unigram the probability of <unk>, or the least of any piece."""
    known = [ngrams[ngram].log_probability for ngram in ngrams if len(ngram) == 1 and ngram[0] > 0]
    least = min(known, default=-math.log(vocabulary_size))
    unknown = ngrams.get((UNKNOWN_ID,), Entry(least))
    for label in range(UNKNOWN_ID, vocabulary_size):
        ngrams.setdefault((label,), Entry(unknown.log_probability))


def _section(line: str, counts: dict[int, int], order: int) -> tuple[str, int]:
    """Return the section that a line begins, and its order; 0 for sections without n-grams."""
    if line == "\\data\\" and not counts:
        return line, 0
    if line == "\\end\\" and counts and order == max(counts):
        return line, 0
    if order + 1 in counts and line == f"\\{order + 1}-grams:":
        return line, order + 1
    raise ValueError(f"{line}: is not the next section that \\data\\ announces")


def _read_ngram(fields: list[str], order: int, labels: dict[str, int]) -> tuple[NGram, Entry]:
    """Read a line of an n-gram section."""
    words, numbers = fields[1 : 1 + order], fields[:1] + fields[1 + order :]
    if len(words) < order or len(numbers) > 2:
        raise ValueError(f"{' '.join(fields)!r}: must be log10 p, {order} words, log10 back-off")
    if missing := [word for word in words if word not in labels]:
        raise ValueError(f"{missing[0]!r}: must be a piece of the run's tokenizer")
    tens = [float(number) for number in numbers]
    if tens[0] == -math.inf:
        tens[0] = _LOG10_OF_ZERO
    if not all(map(math.isfinite, tens)) or tens[0] > 0:
        raise ValueError(f"{' '.join(fields)!r}: needs finite numbers, log10 p at most 0")
    return tuple(labels[word] for word in words), Entry(*(ten * math.log(10) for ten in tens))


def _without_zeros(ngrams: NGrams) -> NGrams:
    """Raise each probability of 0 to the least of any other n-gram.

    Where a model is subtracted, a probability of 0 would be an infinite gain.
    """
    zero = (_LOG10_OF_ZERO + 1) * math.log(10)
    least = min(
        (e.log_probability for e in ngrams.values() if e.log_probability > zero), default=0.0
    )
    return {
        ngram: entry._replace(log_probability=max(entry.log_probability, least))
        for ngram, entry in ngrams.items()
    }


def estimate(sentences: Iterable[Sequence[int]], order: int, vocabulary_size: int) -> NGrams:
    """Estimate an interpolated Kneser-Ney model (Chen and Goodman, 1999, section 3).

    p(w | h) = (c(h w) - D) / c(h) + D n(h) / c(h) p(w | h without its first label), with one
    discount D per order and n(h) the number of different labels seen after h. Below the highest
    order, c counts the different labels seen before, except where h begins a sentence. Below order
    1, all labels and the end are equally probable.
    """
    by_order = _counts_by_order(sentences, order)
    uniform = 1 / vocabulary_size  # The end takes the place of the blank.
    probabilities: dict[NGram, float] = {(): uniform}
    back_offs: dict[NGram, float] = {}
    for length in range(1, order + 1):
        ones, twos = (sum(c == n for c in by_order[length].values()) for n in (1, 2))
        discount = ones / (ones + 2 * twos) if ones and twos else 0.5
        totals: dict[NGram, list[int]] = collections.defaultdict(lambda: [0, 0])
        for ngram, count in by_order[length].items():
            totals[ngram[:-1]][0] += count
            totals[ngram[:-1]][1] += 1
        for context, (total, different) in totals.items():
            back_offs[context] = discount * different / total
        for ngram, count in by_order[length].items():
            total = totals[ngram[:-1]][0]
            shorter = uniform if length == 1 else probabilities[ngram[1:]]
            probabilities[ngram] = (count - discount) / total + back_offs[ngram[:-1]] * shorter
    for label in [*range(UNKNOWN_ID, vocabulary_size), END]:
        probabilities.setdefault((label,), back_offs[()] * uniform)
    probabilities[(BEGIN,)] = 1.0  # Never looked up, but a context.
    return {
        ngram: Entry(_log(p), _log(back_offs.get(ngram, 1.0)))
        for ngram, p in probabilities.items()
        if ngram
    }


def _counts_by_order(sentences: Iterable[Sequence[int]], order: int) -> list[dict[NGram, int]]:
    """Return {n-gram: c} for every order, c as `estimate` defines it."""
    counts: dict[NGram, int] = collections.Counter()
    for sentence in sentences:
        padded = (BEGIN, *sentence, END)
        for end in range(2, len(padded) + 1):
            counts[padded[max(0, end - order) : end]] += 1
    by_order: list[dict[NGram, int]] = [collections.Counter() for _ in range(order + 1)]
    for ngram, count in counts.items():
        by_order[len(ngram)][ngram] = count
    for length in range(order, 1, -1):
        for ngram in by_order[length]:
            by_order[length - 1][ngram[1:]] += 1
    return by_order


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else 0.0


def ngram_automaton(ngrams: NGrams, *, vocabulary_size: int, weight: float) -> Automaton:
    """Build an automaton with a state for every context that differs from its back-off."""
    followed = {ngram[:-1] for ngram in ngrams}
    contexts = [()] + sorted(
        (
            ngram
            for ngram, entry in ngrams.items()
            if ngram[-1] != END and (ngram in followed or entry.back_off)
        ),
        key=len,
    )
    state_of = {context: state for state, context in enumerate(contexts)}

    def state(history: NGram) -> int:
        while history not in state_of:
            history = history[1:]
        return state_of[history]

    arcs: list[dict[int, tuple[int, float]]] = [{} for _ in contexts]
    ends: dict[int, float] = {}
    for ngram, entry in ngrams.items():
        at = state_of[ngram[:-1]]
        if ngram[-1] == END:
            ends[at] = entry.log_probability
        elif ngram[-1] != BEGIN:
            arcs[at][ngram[-1]] = (state(ngram), weight * entry.log_probability)
    assert arcs[0].keys() >= set(range(UNKNOWN_ID, vocabulary_size))
    back_offs = [(0, 0.0)] + [(state(c[1:]), ngrams[c].back_off) for c in contexts[1:]]
    end_gains = [ends.get(0, 0.0)]
    for at, (shorter, back_off) in enumerate(back_offs[1:], start=1):
        end_gains.append(ends.get(at, back_off + end_gains[shorter]))
    return build_automaton(
        arcs,
        [(shorter, weight * back_off) for shorter, back_off in back_offs],
        [weight * gain for gain in end_gains],
        start_state=state((BEGIN,)),
        vocabulary_size=vocabulary_size,
    )
