"""Cuts of a long recording into utterances, and the words of its text in each utterance."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from asr_jax.decoding.pauses import Pause
from asr_jax.decoding.text_alignment import align_characters
from asr_jax.decoding.word_groups import short_parts
from asr_jax.decoding.written_text import WrittenWord

# A pause this long ends an utterance.
PAUSE_SECONDS = 0.7
# What is shorter is no utterance.
MIN_SECONDS = 0.1
# Speech this long without a word of the text is cut out, also without a pause.
FOREIGN_SECONDS = 2.0
# Words that were recognized nowhere may be spoken if they are this few characters; more are not.
MOST_UNHEARD = 40
# Equal pairs of an utterance per character: below, the text is not of this speech.
LEAST_AGREEMENT = 0.35
# A word of the text is heard if this part of its characters are equal to recognized ones.
LEAST_EQUAL = 0.3
# Sound that is kept before and after an utterance, if the pause has it.
MARGIN_SECONDS = 0.05


class Span(NamedTuple):
    """An utterance: some recognized words, and the words of the text that belong to them."""

    start_seconds: float
    end_seconds: float
    spoken: range
    """Recognized words."""
    heard: list[int]
    """Words of the text that pairs of characters connect with recognized words, in order."""
    doubtful: list[range]
    """Runs of words of the text, before, between and after `heard`, that may be spoken or not."""
    agreement: float
    """Equal pairs per character of the text or of the recognized words, whichever are more."""


class Links(NamedTuple):
    """Pairs of characters of the text and of the recognized words, as words."""

    spoken_of: dict[int, list[int]]
    """The recognized word of each pair of each word of the text."""
    equal: Counter[tuple[int, int]]
    """Number of equal pairs of (word of the text, recognized word)."""


def link_words(text: Sequence[WrittenWord], spoken: Sequence[str]) -> Links:
    """Align the text with the recognized words, character by character and without spaces."""
    letters = "".join(word.spelled for word in text)
    heard = "".join(spoken)
    word_of_letter = [n for n, word in enumerate(text) for _ in word.spelled]
    word_of_heard = [n for n, word in enumerate(spoken) for _ in word]
    spoken_of: dict[int, list[int]] = {}
    equal: Counter[tuple[int, int]] = Counter()
    for place, partner in enumerate(align_characters(letters, heard).tolist()):
        if partner >= 0:
            word, other = word_of_letter[place], word_of_heard[partner]
            spoken_of.setdefault(word, []).append(other)
            equal[word, other] += letters[place] == heard[partner]
    same = Counter[int]()
    for (word, _), number in equal.items():
        same[word] += number
    spoken_of = {
        word: others
        for word, others in spoken_of.items()
        if same[word] >= LEAST_EQUAL * len(text[word].spelled)
    }
    return Links(spoken_of, equal)


def cut_spans(
    text: Sequence[WrittenWord],
    spoken: Sequence[str],
    links: Links,
    pauses: Sequence[Pause],
    *,
    max_seconds: float,
    pause_seconds: float = PAUSE_SECONDS,
) -> list[Span]:
    """Return the utterances, in order, each at most `max_seconds` long.

    `pauses` has one before each recognized word, and one after the last. Cuts are at pauses of at
    least `pause_seconds`, around long speech that is not in the text, and, in what is longer than
    `max_seconds`, at the longest pauses. Only an infinite pause divides a word of the text. Speech
    without text is in no utterance, nor is text that is not spoken.
    """
    home = {word: Counter(others).most_common(1)[0][0] for word, others in links.spoken_of.items()}
    cuts = [n for n in range(1, len(spoken)) if pauses[n].quiet_seconds >= pause_seconds]
    cuts += _around_foreign(links, pauses, len(spoken))
    divided = {
        n for others in links.spoken_of.values() for n in range(min(others) + 1, max(others) + 1)
    }
    missing = {n for n in cuts if math.isinf(pauses[n].quiet_seconds)}
    ends = sorted({0, len(spoken), *(set(cuts) - divided), *missing})
    quiet_seconds = [pause.quiet_seconds for pause in pauses]

    def fits(group: range) -> bool:
        start, end = _edges(group, pauses)
        return end - start <= max_seconds

    groups = [
        part
        for start, end in zip(ends, ends[1:])
        for part in short_parts(range(start, end), quiet_seconds, fits, together=divided)
    ]
    texts: dict[int, list[int]] = {}
    group_of = {n: k for k, group in enumerate(groups) for n in group}
    for word in sorted(home):
        texts.setdefault(group_of[home[word]], []).append(word)
    spans = [_span(groups[k], words, text, spoken, (links, pauses)) for k, words in texts.items()]
    spans = [
        span
        for span in spans
        if span.agreement >= LEAST_AGREEMENT
        and MIN_SECONDS <= span.end_seconds - span.start_seconds <= max_seconds
    ]
    return _with_doubtful(spans, text)


def _around_foreign(links: Links, pauses: Sequence[Pause], number: int) -> list[int]:
    """Return cuts before and after long runs of recognized words that the text does not have."""
    heard = {other for others in links.spoken_of.values() for other in others}
    ends = [-1, *sorted(heard), number]
    cuts = []
    for before, after in zip(ends, ends[1:]):
        if after - before > 1:
            seconds = pauses[after].start_seconds - pauses[before + 1].end_seconds
            if seconds >= FOREIGN_SECONDS:
                cuts += [n for n in (before + 1, after) if 0 < n < number]
    return cuts


def _edges(group: range, pauses: Sequence[Pause]) -> tuple[float, float]:
    """Return start and end in seconds of recognized words, with a margin of the pauses."""
    before, after = pauses[group[0]], pauses[group[-1] + 1]
    lead = min(MARGIN_SECONDS, (before.end_seconds - before.start_seconds) / 2)
    trail = min(MARGIN_SECONDS, (after.end_seconds - after.start_seconds) / 2)
    return max(0.0, before.end_seconds - lead), after.start_seconds + trail


def _span(
    group: range,
    words: list[int],
    text: Sequence[WrittenWord],
    spoken: Sequence[str],
    given: tuple[Links, Sequence[Pause]],
) -> Span:
    links, pauses = given
    equal = sum(links.equal[word, other] for word in words for other in set(links.spoken_of[word]))
    letters = sum(len(text[word].spelled) for word in words)
    heard = sum(len(spoken[n]) for n in group)
    return Span(*_edges(group, pauses), group, words, [], equal / max(letters, heard, 1))


def _with_doubtful(spans: list[Span], text: Sequence[WrittenWord]) -> list[Span]:
    """Add the runs of unheard words that are short enough to be tried."""
    bounds = [-1, *(word for span in spans for word in (span.heard[0], span.heard[-1])), len(text)]
    found = []
    for k, span in enumerate(spans):
        known = [bounds[2 * k], *span.heard, bounds[2 * k + 3]]
        runs = [range(before + 1, after) for before, after in zip(known, known[1:])]
        runs = [run for run in runs if run and _letters(run, text) <= MOST_UNHEARD]
        found.append(span._replace(doubtful=runs))
    return found


def _letters(run: range, text: Sequence[WrittenWord]) -> int:
    return sum(len(text[word].spelled) for word in run)
