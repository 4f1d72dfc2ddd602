"""N-gram language models over a tokenizer's pieces: from ARPA files, or estimated from text."""

import collections
import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from asr_jax.decoding.automaton import Automaton, build_automaton
from asr_jax.text import SPACE_PIECE, UNKNOWN_ID, Tokenizer

# Labels of what stands before a sentence's first piece and after its last one.
BEGIN, END = -1, -2
NGram = tuple[int, ...]


class Entry(NamedTuple):
    log_probability: float
    """Of the last label after the others, in nats."""
    back_off: float = 0.0
    """Added where a longer n-gram that begins so is not there, in nats."""


NGrams = dict[NGram, Entry]


def load_language_model(
    path: Path,
    tokenizer: Tokenizer,
    *,
    order: int,
    weight: float,
    warn: Callable[[str], None] = lambda text: None,
) -> Automaton:
    """Of an .arpa or .arpa.gz file, whose words are the tokenizer's pieces; or of any other text.

    A text, a sentence a line, makes an n-gram model of `order`; lines that the tokenizer cannot
    write are left out, and `warn` is told how many. Gains are log-probabilities times `weight`.
    Raises ValueError for what cannot be read, with the number of the line, and for a text of which
    no line can be written.
    """
    if path.suffix == ".arpa" or path.name.endswith(".arpa.gz"):
        ngrams = read_arpa(path, tokenizer.pieces)
    else:
        ngrams = estimate(_sentences(path, tokenizer, warn), order, tokenizer.vocabulary_size)
    return ngram_automaton(ngrams, vocabulary_size=tokenizer.vocabulary_size, weight=weight)


def _sentences(path: Path, tokenizer: Tokenizer, warn: Callable[[str], None]) -> list[list[int]]:
    lines = [line for _, line in _lines(path) if line]
    if not lines:
        raise ValueError(f"{path}: holds no text")
    written, unwritten = [], []
    for line, labels in zip(lines, tokenizer.encode_all(lines)):
        # The space's own piece is a character that the tokenizer lacks, though it encodes it.
        if UNKNOWN_ID in labels or SPACE_PIECE in line:
            unwritten.append(line)
        else:
            written.append(labels.tolist())
    if unwritten:
        unknown = tokenizer.unknown_characters(" ".join(unwritten))
        lacking = f"{path}: {len(unwritten)} of {len(lines)} lines have characters that the "
        lacking += f"model's tokenizer lacks: {unknown[:20]!r}"
        if not written:
            raise ValueError(lacking)
        warn(f"{lacking}; they are left out")
    return written


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """With their numbers, from 1."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            yield from enumerate((line.strip() for line in file), start=1)
    except UnicodeDecodeError:
        raise ValueError(
            f"{path}: neither an ARPA file nor text in UTF-8; where it is KenLM's binary form, "
            "give the ARPA file that it was built from"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def read_arpa(path: Path, pieces: Sequence[str]) -> NGrams:
    r"""An ARPA file: \data\, the counts, and per order lines of `log10 p, pieces, log10 back-off`.

    Words must be `pieces`, besides <s>, </s> and <unk>, whose probability the pieces get that have
    none; where there is no <unk> either, that of the least probable piece. Raises ValueError for a
    broken one, with the number of the line.
    """
    labels = {piece: label for label, piece in enumerate(pieces)}
    labels |= {"<s>": BEGIN, "</s>": END, "<unk>": UNKNOWN_ID}
    ngrams: NGrams = {}
    counts: dict[int, int] = {}
    section, order, left = "", 0, 0
    for number, line in _lines(path):
        if section == "\\end\\" or not line or not (section or line == "\\data\\"):
            continue
        try:
            if line.startswith("\\"):
                if left:
                    raise ValueError(f"{left} n-grams are missing before {line}, or too many there")
                section, order = _section(line, counts, order)
                left = counts.get(order, 0)
            elif section == "\\data\\":
                if not (found := re.fullmatch(r"ngram\s+(\d+)\s*=\s*(\d+)", line)):
                    raise ValueError(f"{line!r}: must be 'ngram N=COUNT'")
                counts[int(found[1])] = int(found[2])
            else:
                ngram, entry = _read_ngram(line.split(), order, labels)
                if ngram in ngrams:
                    raise ValueError(f"{line!r}: the n-gram is there already")
                if order > 1 and ngram[:-1] not in ngrams:
                    raise ValueError(f"{line!r}: what the n-gram begins with is not there")
                ngrams[ngram] = entry
                left -= 1
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from None
    if section != "\\end\\":
        raise ValueError(f"{path}: ends before \\end\\" if section else f"{path}: has no \\data\\")
    _add_missing_pieces(ngrams, len(pieces))
    return ngrams


def _add_missing_pieces(ngrams: NGrams, vocabulary_size: int) -> None:
    """Give pieces without a unigram the probability of <unk>, or else the least there is."""
    known = [ngrams[ngram].log_probability for ngram in ngrams if len(ngram) == 1 and ngram[0] > 0]
    least = min(known, default=-math.log(vocabulary_size))
    unknown = ngrams.get((UNKNOWN_ID,), Entry(least))
    for label in range(UNKNOWN_ID, vocabulary_size):
        ngrams.setdefault((label,), Entry(unknown.log_probability))


def _section(line: str, counts: dict[int, int], order: int) -> tuple[str, int]:
    """The section that begins, and its order; 0 of those without n-grams."""
    if line == "\\data\\" and not counts:
        return line, 0
    if line == "\\end\\" and counts and order == max(counts):
        return line, 0
    if order + 1 in counts and line == f"\\{order + 1}-grams:":
        return line, order + 1
    raise ValueError(f"{line} where the next section must begin, as \\data\\ counts them")


def _read_ngram(fields: list[str], order: int, labels: dict[str, int]) -> tuple[NGram, Entry]:
    words, numbers = fields[1 : 1 + order], fields[:1] + fields[1 + order :]
    if len(words) < order or len(numbers) > 2:
        raise ValueError(f"{' '.join(fields)!r}: must be log10 p, {order} words, log10 back-off")
    if missing := [word for word in words if word not in labels]:
        raise ValueError(f"{missing[0]!r}: must be a piece of the run's tokenizer")
    tens = [float(number) for number in numbers]
    if not all(map(math.isfinite, tens)) or tens[0] > 0:
        raise ValueError(f"{' '.join(fields)!r}: a probability must be at most 1, all finite")
    return tuple(labels[word] for word in words), Entry(*(ten * math.log(10) for ten in tens))


def estimate(sentences: Iterable[Sequence[int]], order: int, vocabulary_size: int) -> NGrams:
    """Interpolated Kneser-Ney, with one discount per order (Chen and Goodman, 1999, section 3).

    p(w | h) = (c(h w) - D) / c(h) + D n(h) / c(h) p(w | h without its first label), with n(h) the
    labels seen after h. Below the highest order c counts the different labels that stood before,
    but where h begins a sentence. Below the lowest all labels, and the end, are alike.
    """
    by_order = _counts_by_order(sentences, order)
    alike = 1 / vocabulary_size  # All but the blank, and the end.
    probabilities: dict[NGram, float] = {(): alike}
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
            shorter = alike if length == 1 else probabilities[ngram[1:]]
            probabilities[ngram] = (count - discount) / total + back_offs[ngram[:-1]] * shorter
    for label in [*range(UNKNOWN_ID, vocabulary_size), END]:
        probabilities.setdefault((label,), back_offs[()] * alike)
    probabilities[(BEGIN,)] = 1.0  # Asked for by nobody; a context all the same.
    return {
        ngram: Entry(_log(p), _log(back_offs.get(ngram, 1.0)))
        for ngram, p in probabilities.items()
        if ngram
    }


def _counts_by_order(sentences: Iterable[Sequence[int]], order: int) -> list[dict[NGram, int]]:
    """Count n-grams at the highest order and sentence starts, and below it the labels before."""
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
    """States are the contexts that differ from a shorter one; ending is the label </s>."""
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
