"""The page of a dataset: what to look at first, then its figures. It loads nothing."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from asr_jax.pages.document import asset, render_document
from asr_jax.pages.elements import audio_amount, audio_uri, counted, name, stated, table
from asr_jax.pages.histogram import histogram_svg
from asr_jax.survey.characters import Character, count_characters
from asr_jax.survey.rows import Row, same_audio, sound_seconds, unlikely_texts
from asr_jax.types import Skipped

MOST_LISTED, MOST_PLAYERS, MOST_CHARACTERS, MOST_SPEAKERS = 30, 60, 300, 50
CLIPPED, QUIET_PEAK, LONG_SILENCE_SECONDS, FAR_BEYOND = 2e-4, 1e-3, 2.0, 64.0

# What is looked for, the worst first: what a recording is or has, and the rule.
EXPLAINED = {
    "different": (
        "has the same audio as another, with a different text",
        "Samples are equal to 16 bits. At most one text of a group is right.",
    ),
    "texts": (
        "has a text that is likely wrong",
        "Their characters per second, without silence at the ends, are more than 4 robust standard "
        "deviations (1.4826 times the median absolute deviation of the logarithm, MAD) from the "
        "median of texts of similar length. A wrong text of the right length is not found.",
    ),
    "quiet": ("is nearly silent", "The peak is below -60 dBFS."),
    "beyond": (
        "has samples far beyond full scale",
        "They may be 16-bit integers in a float file.",
    ),
    "clipped": (
        "is clipped",
        "More than 0.02 % of the samples are in runs of three or more at the recording's peak, or "
        "at full scale and beyond.",
    ),
    "same": ("has the same audio and text as another", "Samples are equal to 16 bits."),
    "ends": (
        "has long silence at an end",
        "More than 2 s of 20 ms frames that are 40 dB below the loudest frame.",
    ),
}

Snippet = Callable[[str], bytes | None]
"""Returns the recording of an id as MP3; None if there is none to play."""


class Finding(NamedTuple):
    """Recordings that a person should look at, with a note for each."""

    anchor: str
    heading: str
    explanation: str
    rows: Sequence[tuple[Row, str]]


def findings(rows: Sequence[Row]) -> list[Finding]:
    """Return what stands out in a dataset, the worst first; empty ones are left out."""
    different, same = same_audio(rows)

    def grouped(groups: list[list[Row]]) -> list[tuple[Row, str]]:
        return [(row, f"group {n}") for n, group in enumerate(groups, start=1) for row in group]

    def level(decibels: float) -> str:
        return f"peak {20 * math.log10(max(decibels, 1e-9)):.1f} dBFS"

    deviating = [
        (row, f"{len(row.text) / sound_seconds(row):.1f} characters/s, {deviation:+.1f} MAD")
        for row, deviation in unlikely_texts(rows)
    ]
    quiet = [(r, level(r.levels.peak)) for r in rows if r.levels.peak < QUIET_PEAK]
    beyond = [(r, level(r.levels.peak)) for r in rows if r.levels.peak > FAR_BEYOND]
    clipped = sorted(
        (r for r in rows if r.levels.clipped > CLIPPED), key=lambda r: -r.levels.clipped
    )
    ends = [
        (r, f"{r.levels.leading_seconds:.1f} s before, {r.levels.trailing_seconds:.1f} s after")
        for r in rows
        if max(r.levels.leading_seconds, r.levels.trailing_seconds) > LONG_SILENCE_SECONDS
    ]
    found = {
        "different": grouped(different),
        "texts": deviating,
        "quiet": quiet,
        "beyond": beyond,
        "clipped": [(r, f"{100 * r.levels.clipped:.2f} % of samples") for r in clipped],
        "same": grouped(same),
        "ends": ends,
    }
    every = [Finding(anchor, *words, found[anchor]) for anchor, words in EXPLAINED.items()]
    return [finding for finding in every if finding.rows]


def render_data_page(
    dataset: str,
    rows: Sequence[Row],
    left_out: Sequence[Skipped],
    shapes: str,
    snippet: Snippet,
) -> str:
    """Return the HTML of the page. `shapes` is text; every string is escaped."""
    found, characters = findings(rows), count_characters([row.text for row in rows])
    share = 100 / max(1, len(rows))
    first = [
        f'<li><a href="#{f.anchor}">{len(f.rows):,} recordings ({share * len(f.rows):.2g} %) '
        f"{f.heading}</a></li>"
        for f in found
    ]
    if left_out:
        are_left_out = stated(len(left_out), "recording", "is left out")
        first.insert(0, f'<li><a href="#left-out">{are_left_out}</a></li>')
    marks = Counter(c.mark.partition(":")[0] for c in characters if c.mark)
    first += [
        f'<li><a href="#characters">{counted(n, "character")}: {escape(mark)}</a></li>'
        for mark, n in marks.items()
    ]
    listed = "".join(first) or "<li>Nothing stands out.</li>"
    embedded: set[str] = set()
    sections = [
        f"<section><h2>Look at first</h2><ul>{listed}</ul></section>",
        *(_finding(finding, snippet, embedded) for finding in found),
        _left_out(left_out),
        _histograms(rows),
        _speakers(rows),
        _characters([c for c in characters if c.mark], [c for c in characters if not c.mark]),
        _formats(rows),
        f"<section><h2>Shapes of batches</h2><pre>{escape(shapes)}</pre></section>",
    ]
    seconds = sum(row.seconds for row in rows)
    return render_document(
        dataset,
        f"{counted(len(rows), 'recording')} · {audio_amount(seconds)}",
        "".join(sections),
        title=f"{dataset}: data",
        style=asset("survey", "data.css"),
    )


def _finding(finding: Finding, snippet: Snippet, embedded: set[str]) -> str:
    plays = finding.anchor != "same"  # nothing is to be heard there
    lines = [
        (
            name(row.id),
            _text(row.text),
            f"{row.seconds:.2f} s",
            escape(note),
            _player(row.id, snippet, embedded) if plays else "",
        )
        for row, note in finding.rows[:MOST_LISTED]
    ]
    more = len(finding.rows) - len(lines)
    return (
        f'<section id="{finding.anchor}"><h2>'
        f"{stated(len(finding.rows), 'recording', finding.heading)}</h2>"
        f'<p class="soft">{finding.explanation}</p>'
        f"{table(('recording', 'text', 'duration', 'note', ''), lines)}"
        f"{f'<p>and {more:,} more</p>' if more else ''}</section>"
    )


def _text(text: str) -> str:
    return f'<span dir="auto">{escape(text)}</span>'


def _player(id: str, snippet: Snippet, embedded: set[str]) -> str:
    if id in embedded:
        return '<span class="soft">above</span>'
    if len(embedded) < MOST_PLAYERS and (uri := audio_uri(snippet(id) or b"")):
        embedded.add(id)
        return f'<audio controls preload="none" aria-label="{escape(id)}" src="{uri}"></audio>'
    return ""


def _left_out(left_out: Sequence[Skipped]) -> str:
    if not left_out:
        return ""
    kinds: dict[str, list[Skipped]] = defaultdict(list)
    for skipped in left_out:
        kinds[skipped.reason.partition(":")[0]].append(skipped)
    lines = [
        (f"{len(alike):,}", escape(s.reason), name(s.id))
        for alike in sorted(kinds.values(), key=len, reverse=True)
        for s in alike[:MOST_LISTED]
    ]
    listed = table(("of this kind", "reason", "recording"), lines)
    return f'<section id="left-out"><h2>Left out</h2>{listed}</section>'


def _histograms(rows: Sequence[Row]) -> str:
    columns = (
        ("Duration", "s", [row.seconds for row in rows]),
        ("Characters per second", "characters/s", [len(r.text) / sound_seconds(r) for r in rows]),
        ("Level below full scale (RMS)", "dB", [_below(row.levels.rms) for row in rows]),
        ("Peak below full scale", "dB", [_below(row.levels.peak) for row in rows]),
    )
    sections = "".join(
        f"<section><h2>{name}</h2>"
        f'<p class="soft">median {np.median(values):.3g}, {min(values):.3g} to {max(values):.3g} '
        f"{unit}</p>{histogram_svg(np.array(values), name, unit)}</section>"
        for name, unit, values in columns
    )
    return f'<div class="pair">{sections}</div>'


def _below(level: float) -> float:
    return max(0.01, -20 * math.log10(max(level, 1e-6)))


def _speakers(rows: Sequence[Row]) -> str:
    seconds: dict[str, float] = defaultdict(float)
    for row in rows:
        seconds[row.speaker] += row.seconds
    lines = [
        (name(speaker) if speaker else "unknown", f"{total / 3600:.3f}")
        for speaker, total in sorted(seconds.items(), key=lambda item: -item[1])[:MOST_SPEAKERS]
    ]
    known = len(seconds) - ("" in seconds)
    listed = table(("speaker", "hours"), lines)
    return f"<section><h2>{counted(known, 'speaker')}</h2>{listed}</section>"


def _characters(odd: Sequence[Character], plain: Sequence[Character]) -> str:
    lines = [
        (
            _text(c.character),
            f"U+{ord(c.character):04X}",
            f"{c.count:,}",
            f"{c.recordings:,}",
            f'<span class="odd">{escape(c.mark)}</span>',
        )
        for c in [*odd, *plain][:MOST_CHARACTERS]
    ]
    listed = table(("character", "code", "count", "recordings", "odd"), lines)
    return (
        f'<section id="characters"><h2>{counted(len(odd) + len(plain), "character")}</h2>'
        f'<p class="soft">Texts are in Unicode form NFC.</p>{listed}</section>'
    )


def _formats(rows: Sequence[Row]) -> str:
    counts = Counter((row.levels.rate_hz, row.levels.channels) for row in rows)
    lines = [
        (f"{rate_hz:,} Hz", f"{channels}", f"{count:,}")
        for (rate_hz, channels), count in counts.most_common()
    ]
    listed = table(("rate", "channels", "recordings"), lines)
    return f"<section><h2>Sample rates and channels</h2>{listed}</section>"
