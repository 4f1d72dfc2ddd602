"""The page of a dataset: what to look at first, then its figures. It loads nothing."""

import base64
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from asr_jax.pages.document import HEAD, page_style
from asr_jax.pages.histogram import histogram_svg
from asr_jax.survey.characters import count_characters
from asr_jax.survey.rows import Row, same_audio, sound_seconds, unlikely_texts
from asr_jax.types import Skipped

MOST_LISTED, MOST_PLAYERS, MOST_CHARACTERS, MOST_SPEAKERS = 30, 60, 300, 50
CLIPPED, QUIET_PEAK, LONG_SILENCE_SECONDS, FAR_BEYOND = 2e-4, 1e-3, 2.0, 64.0

# What is looked for, the worst first: a heading, which follows "N recordings", and the rule.
EXPLAINED = {
    "different": (
        "have the same audio as another, with a different text",
        "Samples are equal to 16 bits. At most one text of a group is right.",
    ),
    "texts": (
        "have a text that is likely wrong",
        "Their characters per second, without silence at the ends, are more than 4 robust standard "
        "deviations (1.4826 times the median absolute deviation of the logarithm, MAD) from the "
        "median of texts of similar length. A wrong text of the right length is not found.",
    ),
    "quiet": ("are nearly silent", "The peak is below -60 dBFS."),
    "beyond": (
        "have samples far beyond full scale",
        "They may be 16-bit integers in a float file.",
    ),
    "clipped": (
        "are clipped",
        "More than 0.02 % of the samples are in runs of three or more at the recording's peak, or "
        "at full scale and beyond.",
    ),
    "same": ("have the same audio and text as another", "Samples are equal to 16 bits."),
    "ends": (
        "have long silence at an end",
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
    name: str,
    rows: Sequence[Row],
    left_out: Sequence[Skipped],
    shapes: str,
    snippet: Snippet,
) -> str:
    """Return the HTML of the page. `shapes` is text; every string is escaped."""
    found, characters = findings(rows), count_characters([row.text for row in rows])
    hours = sum(row.seconds for row in rows) / 3600
    share = 100 / max(1, len(rows))
    first = [
        f'<li><a href="#{f.anchor}">{len(f.rows):,} recordings ({share * len(f.rows):.2g} %) '
        f"{f.heading}</a></li>"
        for f in found
    ]
    if left_out:
        first.insert(
            0, f'<li><a href="#left-out">{len(left_out):,} recordings are left out</a></li>'
        )
    marks = Counter(c.mark.partition(":")[0] for c in characters if c.mark)
    first += [
        f'<li><a href="#characters">{n:,} characters: {escape(mark)}</a></li>'
        for mark, n in marks.items()
    ]
    listed = "".join(first) or "<li>Nothing stands out.</li>"
    embedded: dict[str, str] = {}
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
    style = page_style() + files("asr_jax.survey").joinpath("data.css").read_text(encoding="utf-8")
    return (
        f"{HEAD}<title>{escape(name)}: data</title><style>{style}</style></head><body><main>"
        f'<header><h1 dir="auto">{escape(name)}</h1><p>{len(rows):,} recordings · {hours:,.2f} '
        f"hours</p></header>{''.join(sections)}</main></body></html>\n"
    )


def _finding(finding: Finding, snippet: Snippet, embedded: dict[str, str]) -> str:
    plays = finding.anchor != "same"  # nothing is to be heard there
    lines = [
        f'<tr><td><bdi>{escape(row.id)}</bdi></td><td dir="auto">{escape(row.text)}</td>'
        f"<td>{row.seconds:.2f} s</td><td>{escape(note)}</td>"
        f"<td>{_player(row.id, snippet, embedded) if plays else ''}</td></tr>"
        for row, note in finding.rows[:MOST_LISTED]
    ]
    more = len(finding.rows) - len(lines)
    return (
        f'<section id="{finding.anchor}"><h2>{len(finding.rows):,} recordings {finding.heading}'
        f'</h2><p class="soft">{finding.explanation}</p><table>{"".join(lines)}</table>'
        f"{f'<p>and {more:,} more</p>' if more else ''}</section>"
    )


def _player(id: str, snippet: Snippet, embedded: dict[str, str]) -> str:
    if id not in embedded and len(embedded) < MOST_PLAYERS and (mp3 := snippet(id)):
        embedded[id] = base64.b64encode(mp3).decode()
        uri = f"data:audio/mpeg;base64,{embedded[id]}"
        return f'<audio controls preload="none" aria-label="{escape(id)}" src="{uri}"></audio>'
    return '<span class="soft">above</span>' if id in embedded else ""


def _left_out(left_out: Sequence[Skipped]) -> str:
    if not left_out:
        return ""
    kinds: dict[str, list[Skipped]] = defaultdict(list)
    for skipped in left_out:
        kinds[skipped.reason.partition(":")[0]].append(skipped)
    lines = [
        f"<tr><td>{len(alike):,}</td><td>{escape(s.reason)}</td><td><bdi>{escape(s.id)}</bdi></td></tr>"
        for alike in sorted(kinds.values(), key=len, reverse=True)
        for s in alike[:MOST_LISTED]
    ]
    return (
        '<section id="left-out"><h2>Left out</h2><table><tr><th>of this kind</th><th>reason</th>'
        f"<th>recording</th></tr>{''.join(lines)}</table></section>"
    )


def _histograms(rows: Sequence[Row]) -> str:
    columns = (
        ("Duration", "s", [row.seconds for row in rows]),
        ("Characters per second", "characters/s", [len(r.text) / sound_seconds(r) for r in rows]),
        ("Level below full scale (RMS)", "dB", [_below(row.levels.rms) for row in rows]),
        ("Peak below full scale", "dB", [_below(row.levels.peak) for row in rows]),
    )
    return "".join(
        f"<section><h2>{name}</h2>"
        f'<p class="soft">median {np.median(values):.3g}, {min(values):.3g} to {max(values):.3g} '
        f"{unit}</p>{histogram_svg(np.array(values), name, unit)}</section>"
        for name, unit, values in columns
    )


def _below(level: float) -> float:
    return max(0.01, -20 * math.log10(max(level, 1e-6)))


def _speakers(rows: Sequence[Row]) -> str:
    seconds: dict[str, float] = defaultdict(float)
    for row in rows:
        seconds[row.speaker] += row.seconds
    lines = "".join(
        f"<tr><td><bdi>{escape(speaker) or 'unknown'}</bdi></td><td>{total / 3600:.3f}</td></tr>"
        for speaker, total in sorted(seconds.items(), key=lambda item: -item[1])[:MOST_SPEAKERS]
    )
    known = len(seconds) - ("" in seconds)
    return (
        f"<section><h2>{known:,} speakers</h2><table><tr><th>speaker</th><th>hours</th></tr>"
        f"{lines}</table></section>"
    )


def _characters(odd: Sequence, plain: Sequence) -> str:
    lines = "".join(
        f'<tr><td dir="auto">{escape(c.character)}</td><td>U+{ord(c.character):04X}</td>'
        f'<td>{c.count:,}</td><td>{c.recordings:,}</td><td class="odd">{escape(c.mark)}</td></tr>'
        for c in [*odd, *plain][:MOST_CHARACTERS]
    )
    return (
        f'<section id="characters"><h2>{len(odd) + len(plain):,} characters</h2>'
        '<p class="soft">Texts are in Unicode form NFC.</p><table><tr><th>character</th><th>code'
        f"</th><th>count</th><th>recordings</th><th>odd</th></tr>{lines}</table></section>"
    )


def _formats(rows: Sequence[Row]) -> str:
    counts = Counter((row.levels.rate_hz, row.levels.channels) for row in rows)
    lines = "".join(
        f"<tr><td>{rate_hz:,} Hz</td><td>{channels}</td><td>{count:,}</td></tr>"
        for (rate_hz, channels), count in counts.most_common()
    )
    return (
        "<section><h2>Sample rates and channels</h2><table><tr><th>rate</th><th>channels</th>"
        f"<th>recordings</th></tr>{lines}</table></section>"
    )
