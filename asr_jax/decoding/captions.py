"""Timed words in the formats CTM, SubRip and WebVTT."""

import textwrap
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from asr_jax.types import Word

# Readable captions: at most two lines of 42 characters, shown for 1 to 7 seconds.
LINES = 2
LINE_CHARACTERS = 42
SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 7.0
PAUSE_SECONDS = 1.0
"""A pause of this length ends a caption."""
CLOCK_SECONDS = 0.002
"""Times this far apart stay apart when they are rounded to milliseconds."""


class Caption(NamedTuple):
    """A screen of text and the time for which it is shown."""

    start_seconds: float
    end_seconds: float
    lines: list[str]


def ctm(words: Sequence[Word], recording: str) -> str:
    """Return NIST's CTM: recording, channel, start and duration in seconds, word, confidence."""
    name = recording_name(recording)
    return "".join(
        f"{name} 1 {word.start_seconds:.3f} {word.end_seconds - word.start_seconds:.3f} "
        f"{word.text} {word.confidence:.4f}\n"
        for word in words
    )


def recording_name(recording: str) -> str:
    """Return a recording's name in CTM, whose fields are separated by white space."""
    return "_".join(recording.split())


def srt(words: Sequence[Word]) -> str:
    """Return SubRip subtitles."""
    return "\n".join(
        f"{number}\n{_clock(caption.start_seconds, ',')} --> {_clock(caption.end_seconds, ',')}\n"
        + "".join(f"{line}\n" for line in caption.lines)
        for number, caption in enumerate(captions(words), start=1)
    )


def vtt(words: Sequence[Word]) -> str:
    """Return WebVTT captions."""
    return "WEBVTT\n" + "".join(
        f"\n{_clock(caption.start_seconds, '.')} --> {_clock(caption.end_seconds, '.')}\n"
        + "".join(f"{escape(line, quote=False)}\n" for line in caption.lines)
        for caption in captions(words)
    )


def captions(words: Sequence[Word]) -> Iterator[Caption]:
    """Yield the words in order, grouped into captions.

    A caption is shown until its last word ends, for at least SHORTEST_SECONDS, but never past the
    start of the next caption. It starts with its first word; where that does not come after the
    start of the caption before, as without times, it starts SHORTEST_SECONDS after that.
    """
    groups: list[list[Word]] = []
    for word in words:
        if groups and _fits(groups[-1], word):
            groups[-1].append(word)
        else:
            groups.append([word])
    starts: list[float] = []
    for group in groups:
        start = group[0].start_seconds
        if starts and start < starts[-1] + CLOCK_SECONDS:
            start = starts[-1] + SHORTEST_SECONDS
        starts.append(start)
    for group, start, next_start in zip(groups, starts, [*starts[1:], float("inf")]):
        end = max(group[-1].end_seconds, start + SHORTEST_SECONDS)
        yield Caption(start, min(end, next_start), _lines(group))


def _fits(group: list[Word], word: Word) -> bool:
    return (
        len(_lines([*group, word])) <= LINES
        and word.end_seconds - group[0].start_seconds <= LONGEST_SECONDS
        and word.start_seconds - group[-1].end_seconds < PAUSE_SECONDS
    )


def _lines(words: Sequence[Word]) -> list[str]:
    text = " ".join(word.text for word in words)
    return textwrap.wrap(text, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return (
        f"{minutes // 60:02}:{minutes % 60:02}:"
        f"{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"
    )
