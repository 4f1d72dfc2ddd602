"""Parts of pages: numbers in words, tables, tiles of figures, and audio."""

import base64
from collections.abc import Iterable, Sequence
from html import escape

# Files without a name, such as members of archives, are known by their first bytes.
_MIME_TYPES = {
    b"fLaC": "audio/flac",
    b"OggS": "audio/ogg",
    b"RIFF": "audio/wav",
    b"ID3": "audio/mpeg",
    b"\xff\xfb": "audio/mpeg",
    b"\xff\xf3": "audio/mpeg",
}


def counted(count: int, noun: str) -> str:
    """Return a count and its noun: 1 recording, 2,000 recordings."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def stated(count: int, noun: str, predicate: str) -> str:
    """Return what a number of things is or has: "2 recordings are clipped", of "is clipped"."""
    verb, _, rest = predicate.partition(" ")
    plural = {"is": "are", "has": "have"}
    return f"{counted(count, noun)} {verb if count == 1 else plural[verb]} {rest}"


def audio_amount(seconds: float) -> str:
    """Return an amount of audio in hours, minutes or seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def section(heading: str, body: str, *, id: str = "") -> str:
    """Return a part of a page under a heading, both HTML."""
    start = f'<section id="{id}">' if id else "<section>"
    return f"{start}<h2>{heading}</h2>{body}</section>"


def tiles(figures: Iterable[tuple[str, str, str]]) -> str:
    """Return figures side by side. Each is HTML: its name, its value, and a remark."""
    items = (f"<div><dt>{a}</dt><dd>{b}</dd><dd>{c}</dd></div>" for a, b, c in figures)
    return f'<dl class="tiles">{"".join(items)}</dl>'


def table(
    head: Sequence[str], lines: Iterable[Sequence[str]], *, more: int = 0, attributes: str = ""
) -> str:
    """Return a table of cells that are HTML; `more` lines are counted below it."""
    heads = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in lines)
    shown = f"<table{attributes}><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f"{shown}<p>and {more:,} more</p>" if more else shown


def name(text: str) -> str:
    """Return a name as HTML; whatever its direction, what is around it keeps its place."""
    return f"<bdi>{escape(text)}</bdi>"


def audio_uri(stored: bytes) -> str | None:
    """Return the data: URI of an audio file; None if no browser can play it."""
    mime_type = next((_MIME_TYPES[m] for m in _MIME_TYPES if stored.startswith(m)), None)
    return mime_type and f"data:{mime_type};base64,{base64.b64encode(stored).decode()}"
