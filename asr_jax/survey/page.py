"""The page of a dataset: what to look at first, then its figures. It loads nothing."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from asr_jax.pages.document import asset, render_document
from asr_jax.pages.elements import (
    audio_amount,
    audio_uri,
    counted,
    name,
    section,
    stated,
    table,
    tiles,
)
from asr_jax.pages.histogram import histogram_svg
from asr_jax.survey.characters import Character, count_characters
from asr_jax.survey.findings import Finding, findings
from asr_jax.survey.gathered import MOST_LISTED, Survey
from asr_jax.survey.rows import sound_seconds
from asr_jax.types import Skipped, Utterance

MOST_PLAYERS, MOST_CHARACTERS, MOST_SPEAKERS, MOST_TEXTS = 10, 300, 20, 10

Snippet = Callable[[Utterance], bytes | None]
"""Returns the beginning of a recording as MP3; None if there is nothing to play."""


def render_data_page(
    dataset: str,
    utterances: Sequence[Utterance],
    survey: Survey,
    shapes: str,
    snippet: Snippet,
) -> str:
    """Return the HTML of the page.

    Args:
        dataset: its name; as all that follows, text and no HTML.
        utterances: the usable utterances, in the order of the survey.
        survey: what was noted of them and of those that are left out.
        shapes: the batches that training would have.
        snippet: encodes a recording to play.
    """
    rows = survey.rows
    characters = count_characters([utterance.text for utterance in utterances])
    lengths = np.fromiter((len(utterance.text) for utterance in utterances), float)
    texts = np.fromiter((hash(utterance.text) for utterance in utterances), np.int64)
    found = findings(rows, lengths, texts) if len(rows) else []
    odd = [character for character in characters if character.mark]
    sections = [
        _first(found, len(rows), len(survey.left_out), odd),
        _headline(utterances, rows, texts) if len(rows) else "",
        *(_finding(finding, utterances, snippet) for finding in found),
        _left_out(survey, snippet),
        _histograms(rows, lengths) if len(rows) else "",
        _speakers(utterances),
        _texts(utterances, texts),
        _characters(odd, [character for character in characters if not character.mark]),
        _formats(rows),
        section("Shapes of batches", f"<pre>{escape(shapes)}</pre>"),
    ]
    return render_document(
        dataset,
        f"{counted(len(rows), 'recording')} · {audio_amount(float(rows['seconds'].sum()))}",
        "\n".join(sections),
        title=f"{dataset}: data",
        style=asset("survey", "data.css"),
    )


def _first(
    found: Sequence[Finding], recordings: int, left_out: int, odd: Sequence[Character]
) -> str:
    """Return the list of what to look at first, with links to the sections."""
    items = [("left-out", stated(left_out, "recording", "is left out"))] if left_out else []
    items += [
        (
            finding.anchor,
            f"{stated(finding.count, 'recording', finding.predicate)} "
            f"({100 * finding.count / recordings:.2g} %)",
        )
        for finding in found
    ]
    marks = Counter(character.mark.partition(":")[0] for character in odd)
    items += [("characters", f"{counted(n, 'character')}: {mark}") for mark, n in marks.items()]
    lines = (f'<li><a href="#{anchor}">{escape(words)}</a></li>' for anchor, words in items)
    listed = "".join(lines) or "<li>Nothing stands out.</li>"
    return section("Look at first", f"<ul>{listed}</ul>")


def _headline(utterances: Sequence[Utterance], rows: np.ndarray, texts: np.ndarray) -> str:
    seconds, (rates, counts) = rows["seconds"], np.unique(rows["rate_hz"], return_counts=True)
    speakers = len({utterance.speaker for utterance in utterances} - {""})
    others = len(rates) - 1
    figures = tiles(
        [
            (
                "Audio",
                audio_amount(float(seconds.sum())),
                f"{seconds.min():.3g} to {seconds.max():.3g} s each",
            ),
            ("Speakers", f"{speakers:,}" if speakers else "–", "" if speakers else "not stated"),
            (
                "Different texts",
                f"{len(np.unique(texts)):,}",
                f"of {counted(len(rows), 'recording')}",
            ),
            (
                "Sample rate",
                f"{rates[counts.argmax()]:,} <small>Hz</small>",
                f"and {counted(others, 'other')}" if others else "in all recordings",
            ),
            (
                "Level",
                f"{np.median(_decibels(rows['rms'])):.1f} <small>dBFS</small>",
                "median of RMS",
            ),
        ]
    )
    return f"<section>{figures}</section>"


def _finding(finding: Finding, utterances: Sequence[Utterance], snippet: Snippet) -> str:
    listed = [utterances[number] for number, _ in finding.listed]
    # Nothing is to be heard in copies.
    players = _players([] if finding.anchor == "same" else listed, snippet)
    lines = [
        (
            name(utterance.id),
            _text(utterance.text),
            f"{utterance.duration_seconds:.2f} s",
            escape(note),
            players.get(utterance.id, ""),
        )
        for utterance, (_, note) in zip(listed, finding.listed)
    ]
    return section(
        stated(finding.count, "recording", finding.predicate),
        f'<p class="soft">{finding.explanation}</p>'
        + table(
            ("recording", "text", "duration", "note", ""), lines, more=finding.count - len(lines)
        ),
        id=finding.anchor,
    )


def _players(utterances: Sequence[Utterance], snippet: Snippet) -> dict[str, str]:
    """Return players, by id, of the first recordings that can be decoded."""
    players: dict[str, str] = {}
    for utterance in utterances:
        if len(players) == MOST_PLAYERS:
            break
        if uri := audio_uri(snippet(utterance) or b""):
            label = f'aria-label="{escape(utterance.id)}"'
            players[utterance.id] = f'<audio controls preload="none" {label} src="{uri}"></audio>'
    return players


def _text(text: str) -> str:
    return f'<span dir="auto">{escape(text)}</span>'


def _left_out(survey: Survey, snippet: Snippet) -> str:
    left_out, recordings = survey.left_out, survey.left_out_recordings
    if not left_out:
        return ""
    kinds: dict[str, list[Skipped]] = defaultdict(list)
    for skipped in left_out:
        kinds[skipped.reason.partition(":")[0]].append(skipped)
    listed = [
        (len(alike), skipped)
        for alike in sorted(kinds.values(), key=len, reverse=True)
        for skipped in alike[:MOST_LISTED]
    ]
    known = [recordings[skipped.id] for _, skipped in listed if skipped.id in recordings]
    players = _players(known, snippet)
    lines = [
        (f"{alike:,}", _text(skipped.reason), name(skipped.id), players.get(skipped.id, ""))
        for alike, skipped in listed
    ]
    shown = table(("of this kind", "reason", "recording", ""), lines)
    return section(stated(len(left_out), "recording", "is left out"), shown, id="left-out")


def _histograms(rows: np.ndarray, lengths: np.ndarray) -> str:
    columns = (
        ("Duration", "s", rows["seconds"]),
        ("Characters per second", "characters/s", lengths / sound_seconds(rows)),
        ("Level below full scale (RMS)", "dB", np.maximum(-_decibels(rows["rms"]), 0.01)),
        ("Peak below full scale", "dB", np.maximum(-_decibels(rows["peak"]), 0.01)),
    )
    sections = [
        section(
            heading,
            f'<p class="soft">median {np.median(values):.3g}, {values.min():.3g} to '
            f"{values.max():.3g} {unit}</p>{histogram_svg(values, heading, unit)}",
        )
        for heading, unit, values in columns
    ]
    return f'<div class="pair">{"".join(sections)}</div>'


def _decibels(level: np.ndarray) -> np.ndarray:
    return 20 * np.log10(np.maximum(level, 1e-6, dtype=float))


def _speakers(utterances: Sequence[Utterance]) -> str:
    seconds: dict[str, float] = defaultdict(float)
    for utterance in utterances:
        seconds[utterance.speaker] += utterance.duration_seconds
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:MOST_SPEAKERS]
    lines = [
        (name(speaker) if speaker else "unknown", audio_amount(total)) for speaker, total in longest
    ]
    known = len(seconds) - ("" in seconds)
    shown = table(("speaker", "audio"), lines, more=len(seconds) - len(lines))
    return section(counted(known, "speaker"), shown)


def _texts(utterances: Sequence[Utterance], hashes: np.ndarray) -> str:
    """Return the texts of the most recordings."""
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    order = [n for n in np.lexsort((first, -counts))[:MOST_TEXTS] if counts[n] > 1]
    lines = [(f"{counts[n]:,}", _text(utterances[int(first[n])].text)) for n in order]
    if not lines:
        return ""
    repeated = int((counts > 1).sum())
    words = stated(repeated, "text", "is of several recordings")
    return section(words, table(("recordings", "text"), lines, more=repeated - len(lines)))


def _characters(odd: Sequence[Character], plain: Sequence[Character]) -> str:
    lines = [
        (
            _text(_visible(c.character)),
            f"U+{ord(c.character):04X}",
            f"{c.count:,}",
            f"{c.recordings:,}",
            f'<span class="odd">{escape(c.mark)}</span>',
            unicodedata.name(c.character, "").lower(),
        )
        for c in [*odd, *plain][:MOST_CHARACTERS]
    ]
    head = "character", "code", "count", "recordings", "odd", "name"
    note = '<p class="soft">Texts are in Unicode form NFC.</p>'
    words = counted(len(odd) + len(plain), "character")
    return section(words, note + table(head, lines), id="characters")


def _visible(character: str) -> str:
    """Return the character, on a circle if it is one that is added to another."""
    return f"\u25cc{character}" if unicodedata.combining(character) else character


def _formats(rows: np.ndarray) -> str:
    counts = Counter(zip(rows["rate_hz"].tolist(), rows["channels"].tolist()))
    lines = [
        (f"{rate_hz:,} Hz", f"{channels}", f"{count:,}")
        for (rate_hz, channels), count in counts.most_common()
    ]
    return section("Sample rates and channels", table(("rate", "channels", "recordings"), lines))
