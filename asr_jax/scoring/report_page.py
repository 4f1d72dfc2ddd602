"""report.html: one page that needs nothing from anywhere, and says so to the browser."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from asr_jax.scoring.wer import ErrorCounts

_LONGEST_CHART = 12
_LONGEST_LIST = 10


def render_page(
    *,
    title: str,
    figures: Mapping,
    speakers: Mapping[str, ErrorCounts],
    durations: Mapping[str, ErrorCounts],
    confidences: Mapping[str, ErrorCounts],
    confusions: Counter[tuple[str | None, str | None]],
    rows: Sequence[Mapping],
    audio_uris: Sequence[str],
    audio_wanted: bool,
) -> str:
    """HTML of the whole report; `figures` is what wer.json holds, `rows` the table's content.

    Rows travel as JSON and are drawn by the page's script as the reader scrolls. "<" cannot
    occur in that JSON, so no transcript can end the element that carries it.
    """
    worst = sorted(speakers.items(), key=lambda item: -_rate(item[1]))[:_LONGEST_CHART]
    shown = f"worst {len(worst)} of {len(speakers)}, " if len(worst) < len(speakers) else ""
    charts = _chart("WER by speaker", dict(worst), shown) if speakers else ""
    charts += _chart("WER by duration", durations)
    charts += _chart("WER by confidence", confidences)
    hours = figures["audio_seconds"] / 3600
    amount = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:,.1f} min"
    subtitle = f"{figures['utterances']:,} utterances · {amount} of audio" + (
        f" · {len(speakers):,} speakers" if speakers else ""
    )
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    audio = "\n".join(
        f'<script type="text/plain" id="audio-{i}">{uri}</script>'
        for i, uri in enumerate(audio_uris)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 media-src 'self' data: file:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)}: {_number(figures["wer"])} % WER</title>
<style>{_beside("report.css")}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{subtitle}</p></header>
{_headline(figures)}
{_comparison(figures)}
{_facts(figures["facts"])}
<div class="pair">{charts}</div>
{_confusion_lists(confusions)}
{_table(rows, audio_wanted, "comparison" in figures)}
</main>
<script type="application/json" id="rows">{data}</script>
{audio}
<script>{_beside("report.js")}</script>
</body>
</html>
"""


def _beside(name: str) -> str:
    return files("asr_jax.scoring").joinpath(name).read_text(encoding="utf-8")


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _rate(counts: ErrorCounts) -> float:
    return counts.rate if counts.reference_words else 0.0


def _headline(figures: Mapping) -> str:
    low, high = figures["wer_95_percent_interval"]
    words = figures["reference_words"]
    edits = ("substitutions", "deletions", "insertions")
    tiles = [
        (
            f'<i class="{edit[:3]}"></i>{edit.title()}',
            f"{figures[edit]:,}",
            f"{100 * figures[edit] / words:.2f} % of words" if words else "",
        )
        for edit in edits
    ]
    tiles += [
        ("Character error rate", f"{_number(figures['cer'])} <small>%</small>", "spaces included"),
        (
            "Sentence error rate",
            f"{_number(figures['sentence_error_rate'])} <small>%</small>",
            "utterances with an error",
        ),
        (
            "Speed",
            f"{_number(figures['rtfx'], 1)} <small>×</small>",
            f"real time · {figures['wall_seconds']:,.1f} s in all",
        ),
    ]
    return f"""<section class="headline">
<div class="wer"><h2>Word error rate</h2>
<p class="big">{_number(figures["wer"])}<small> %</small></p>
<p>95 % interval {_number(low)} to {_number(high)}<br>{words:,} reference words</p></div>
<dl class="tiles">{"".join(f"<div><dt>{a}</dt><dd>{b}</dd><dd>{c}</dd></div>" for a, b, c in tiles)}
</dl></section>"""


def comparison_lines(comparison: Mapping) -> list[str]:
    """What wer.json's "comparison" says, in words."""
    difference = comparison["difference"]
    low, high = comparison["difference_95_percent_interval"]
    p_value = comparison["p_value"]
    if difference is None or p_value is None:
        verdict = "too little to tell them apart"
    elif p_value < 0.05:
        verdict = f"{'lower' if difference < 0 else 'higher'} by more than chance"
    else:
        verdict = "may be chance"
    utterances, better, worse = (comparison[name] for name in ("utterances", "better", "worse"))
    lines = [
        f"WER {_number(comparison['wer'])} % against {_number(comparison['other_wer'])} %: "
        f"{_signed(difference)}, 95 % interval {_signed(low)} to {_signed(high)}",
        f"matched pairs: p = {'–' if p_value is None else f'{p_value:.2g}'}, {verdict}",
        f"{utterances:,} utterances: {better:,} with fewer errors, {worse:,} with more",
    ]
    for where, ids in (("here", comparison["only_here"]), ("there", comparison["only_there"])):
        if ids:
            more = ", ..." if len(ids) > 3 else ""
            lines.append(
                f"left out: {len(ids):,} recognised {where} only: {', '.join(ids[:3])}{more}"
            )
    return lines


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _comparison(figures: Mapping) -> str:
    if "comparison" not in figures:
        return ""
    items = "".join(f"<p>{escape(line)}</p>" for line in comparison_lines(figures["comparison"]))
    return (
        f"<section><h2>Compared with {escape(figures['comparison']['with'])}</h2>{items}</section>"
    )


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{items}</dl>' if facts else ""


def _chart(heading: str, groups: Mapping[str, ErrorCounts], note: str = "") -> str:
    """Horizontal bars as long as each group's WER, divided into its three kinds of errors.

    Places are percentages of the drawing, so that it fits any width and its letters stay the same.
    """
    height = 26
    longest = max(map(_rate, groups.values())) or 1.0
    bars = []
    for i, (label, counts) in enumerate(groups.items()):
        y, x = i * height, 32.0
        short = label if len(label) <= 12 else f"{label[:11]}…"
        bars.append(
            f"<g><title>{escape(label)}: {counts.errors:,} errors in {counts.reference_words:,}"
            f' words</title><text x="0" y="{y + 17}">{escape(short)}</text>'
        )
        for kind in ("substitutions", "deletions", "insertions"):
            if counts.reference_words:
                width = 26 * getattr(counts, kind) / counts.reference_words / longest
                bars.append(
                    f'<rect class="{kind[:3]}" x="{x:.2f}%" y="{y + 5}" width="{width:.2f}%"'
                    f' height="{height - 10}"/>'
                )
                x += width
        percent = _number(100 * counts.rate if counts.reference_words else None, 1)
        bars.append(
            f'<text class="value" x="{x:.2f}%" dx="8" y="{y + 17}">{percent} %</text>'
            f'<text class="words" x="100%" y="{y + 17}">{counts.reference_words:,}</text></g>'
        )
    return (
        f"<section><h2>{heading} <small>{note}with words</small></h2>"
        f'<svg role="img" aria-label="{heading}"'
        f' width="100%" height="{len(groups) * height}">{"".join(bars)}</svg></section>'
    )


def _confusion_lists(confusions: Counter[tuple[str | None, str | None]]) -> str:
    """The commonest errors of each kind. A click shows the utterances that have them."""
    items: dict[str, list[str]] = {"Substitutions": [], "Deletions": [], "Insertions": []}
    for (said, heard), count in confusions.most_common():
        kind = "Insertions" if said is None else "Deletions" if heard is None else "Substitutions"
        before, after = escape(said or "∅"), escape(heard or "∅")
        items[kind].append(
            f'<li><button type="button" data-find="{before}→{after}">{before} → {after}</button>'
            f"<b>{count:,}</b></li>"
        )
    lists = "".join(
        f'<section><h2><i class="{kind[:3].lower()}"></i>{kind}'
        f" <small>{len(found):,} different</small></h2>"
        + (f"<ol>{''.join(found[:_LONGEST_LIST])}</ol>" if found else "<p>None.</p>")
        + "</section>"
        for kind, found in items.items()
    )
    return f'<div class="triple">{lists}</div>'


def _table(rows: Sequence[Mapping], audio_wanted: bool, compared: bool) -> str:
    with_audio = sum(row["audio"] is not None for row in rows)
    note = ""
    if audio_wanted and with_audio < len(rows):
        note = (
            f"<p>The recordings of {with_audio:,} of {len(rows):,} utterances are in this page,"
            " those with the most errors first; the others are played from where they lie, if they"
            " are files of their own and this page was not moved.</p>"
        )
    gain = " Gain: how many errors more the other has." if compared else ""
    heads = "".join(
        f'<th scope="col"><button type="button" data-sort="{key}">{name}</button></th>'
        for key, name in (
            ("id", "Utterance"),
            ("said", "Transcript"),
            ("seconds", "Seconds"),
            ("words", "Words"),
            ("errors", "Errors"),
            ("rate", "WER %"),
            ("sure", "Sure %"),
            *([("gain", "Gain")] if compared else []),
        )
    )
    return f"""<section class="utterances"><h2>Utterances</h2>
<p>What was recognised, with what was said above every error:
<span class="word sub"><span>said</span><span>heard</span></span>
<span class="word del"><span>missed</span><span>∅</span></span>
<span class="word ins"><span>∅</span><span>invented</span></span></p>
<p>A click on an utterance shows when. Sure: the mean confidence of its words.{gain}</p>
{note}<noscript><p>The table needs JavaScript; hypotheses.jsonl has the same text.</p></noscript>
<form class="toolbar"><input type="search" placeholder="Search text, utterance or speaker"
 aria-label="Search"><label><input type="checkbox"> only with errors</label>
<output></output></form>
<table><thead><tr>{heads}</tr></thead><tbody></tbody></table><div id="end"></div></section>"""
