"""Groups of words between pauses: how the transcript of a long recording becomes utterances."""

from collections.abc import Callable, Collection, Sequence
from itertools import accumulate
from typing import NamedTuple

from asr_jax.types import Word

# Sound that is kept before the first and after the last word, if the pause has twice as much.
MARGIN_SECONDS = 0.5


class WordGroup(NamedTuple):
    """Consecutive words of a recording, and the segment of it that has them."""

    start_seconds: float
    end_seconds: float
    words: Sequence[Word]

    @property
    def text(self) -> str:
        """The words, separated by spaces."""
        return " ".join(word.text for word in self.words)

    @property
    def confidence(self) -> float:
        """Mean of the words' confidences."""
        return sum(word.confidence for word in self.words) / len(self.words)


def word_groups(
    words: Sequence[Word], *, duration_seconds: float, max_seconds: float
) -> list[WordGroup]:
    """Return the words of a recording of `duration_seconds` as groups, in order.

    A recording of at most `max_seconds` is one group, from its start to its end. A longer one is
    cut at the longest pause between two words, and its parts again, until no part is longer. A
    group extends beyond its words to the middle of the pause, at most MARGIN_SECONDS. A single word
    may be longer than `max_seconds`. There is no group without words.
    """
    if not words:
        return []
    if duration_seconds <= max_seconds:
        return [WordGroup(0.0, duration_seconds, words)]
    # Words of overlapping windows may end after later ones.
    ends = list(accumulate((word.end_seconds for word in words), max))
    starts = [max(word.start_seconds, end) for word, end in zip(words[1:], ends)]
    bounds = [0.0, *((end + start) / 2 for start, end in zip(starts, ends)), duration_seconds]
    pauses = [0.0, *(start - end for start, end in zip(starts, ends))]

    def group(part: range) -> WordGroup:
        first, stop = part.start, part.stop
        start = max(bounds[first], words[first].start_seconds - MARGIN_SECONDS)
        end = min(bounds[stop], ends[stop - 1] + MARGIN_SECONDS)
        return WordGroup(round(start, 3), round(end, 3), words[first:stop])

    def fits(part: range) -> bool:
        whole = group(part)
        return whole.end_seconds - whole.start_seconds <= max_seconds

    return [group(part) for part in short_parts(range(len(words)), pauses, fits)]


def short_parts(
    words: range,
    pauses: Sequence[float],
    fits: Callable[[range], bool],
    *,
    together: Collection[int] = (),
) -> list[range]:
    """Return consecutive words, cut at the longest pause, and the parts again, until each fits.

    pauses[n] is the pause before word n. There is no cut before the words of `together`: a part may
    remain that does not fit.
    """
    found: list[range] = []
    waiting = [words]
    while waiting:
        part = waiting.pop()
        places = [n for n in part[1:] if n not in together]
        if not places or fits(part):
            found.append(part)
            continue
        # Of equal pauses, the one nearest to the middle, which leaves the fewest parts.
        middle = (part.start + part.stop) / 2
        cut = max(places, key=lambda n: (pauses[n], -abs(n - middle)))
        waiting += [range(cut, part.stop), range(part.start, cut)]
    return found
