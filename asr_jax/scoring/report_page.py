"""report.html: one self-contained page, which may not load anything from the network."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

from asr_jax.pages.document import asset, render_document
from asr_jax.pages.elements import audio_amount, counted, table, tiles
from asr_jax.scoring.evaluation import ComparisonFigures, Figures, MainRate, Scores, main_rate
from asr_jax.scoring.wer import ErrorCounts, total

_MOST_BARS = 12
_MOST_LIST_ITEMS = 10
_BAR_HEIGHT_PIXELS = 26


def render_page(
    title: str,
    figures: Figures,
    scores: Scores,
    *,
    rows: Sequence[Mapping[str, object]],
    recordings: Sequence[str] | None,
) -> str:
    """Return the HTML of report.html.

    Rows travel as JSON and are drawn by the page's script as the reader scrolls. "<" cannot
    occur in that JSON, so no transcript can end the element that carries it.

    Args:
        rows: the table of utterances, as report.js reads it.
        recordings: data: URIs of embedded recordings; None for a page without any.
    """
    main = main_rate(figures)
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    audio = "\n".join(
        f'<script type="text/plain" id="audio-{i}">{uri}</script>'
        for i, uri in enumerate(recordings or ())
    )
    sections = f"""{_headline(figures, scores, main)}
{_comparison(figures)}
{_facts(figures["facts"])}
<div class="pair">{_charts(scores, main)}</div>
{_confusion_lists(scores)}
{_table(rows, main, recordings is not None, "comparison" in figures)}"""
    return render_document(
        title,
        _subtitle(figures, scores),
        sections,
        title=f"{title}: {_number(main.percent)} % {main.name}",
        style=asset("scoring", "report.css"),
        after=f"""<script type="application/json" id="rows">{data}</script>
{audio}
<script>{asset("scoring", "report.js")}</script>
""",
    )


def _subtitle(figures: Figures, scores: Scores) -> str:
    speakers = len(scores.groups.by_speaker)
    amounts = [
        counted(figures["utterances"], "utterance"),
        f"{audio_amount(figures['audio_seconds'])} of audio",
        *([counted(speakers, "speaker")] if speakers else []),
    ]
    return " · ".join(amounts)


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _css_class(kind: str) -> str:
    """Return sub, del or ins for a kind of error."""
    return kind[:3].lower()


_NAMES = {"WER": "Word error rate", "CER": "Character error rate"}


def _headline(figures: Figures, scores: Scores, main: MainRate) -> str:
    corpus, words = total(scores.counts), main.reference_units
    counts = {
        "Substitutions": corpus.substitutions,
        "Deletions": corpus.deletions,
        "Insertions": corpus.insertions,
    }
    other = "Character error rate", figures["cer"], "spaces included"
    if main.name == "CER":
        other = "Word error rate", figures["wer"], "of words between spaces"
    second, percent, remark = other
    shown = [
        (
            f'<i class="{_css_class(kind)}"></i>{kind}',
            f"{count:,}",
            f"{100 * count / words:.2f} % of {main.unit}" if words else "",
        )
        for kind, count in counts.items()
    ]
    if main.differs:
        shown.append(
            (
                "Without punctuation and case",
                f"{_number(main.plain_percent)} <small>%</small>",
                f"{main.name}, 95 % interval {' to '.join(map(_number, main.plain_interval))}",
            )
        )
    shown += [
        (second, f"{_number(percent)} <small>%</small>", remark),
        (
            "Sentence error rate",
            f"{_number(figures['sentence_error_rate'])} <small>%</small>",
            "utterances with an error",
        ),
        (
            "Speed",
            f"{_number(figures['rtfx'], 1)} <small>×</small>",
            f"real time · {figures['wall_seconds']:,.1f} s in total",
        ),
    ]
    return f"""<section class="headline">
<div class="wer"><h2>{_NAMES[main.name]}</h2>
<p class="big">{_number(main.percent)}<small> %</small></p>
<p>95 % interval {" to ".join(map(_number, main.interval))}<br>{words:,} reference {main.unit}</p>
</div>
{tiles(shown)}</section>"""


def comparison_lines(comparison: ComparisonFigures) -> list[str]:
    """Return the comparison of wer.json in words."""
    difference = comparison["difference"]
    rates = "WER", comparison["wer"], comparison["other_wer"]
    if "cer" in comparison and "other_cer" in comparison:
        rates = "CER", comparison["cer"], comparison["other_cer"]
    name, rate, other_rate = rates
    low, high = comparison["difference_95_percent_interval"]
    p_value = comparison["p_value"]
    if difference is None or p_value is None:
        verdict = "too little data for a test"
    elif p_value < 0.05:
        verdict = f"{'lower' if difference < 0 else 'higher'} by more than chance"
    else:
        verdict = "may be chance"
    lines = [
        f"{name} {_number(rate)} % against {_number(other_rate)} %: "
        f"{_signed(difference)}, 95 % interval {_signed(low)} to {_signed(high)}",
        f"matched pairs: p = {'–' if p_value is None else f'{p_value:.2g}'}, {verdict}",
        f"{comparison['utterances']:,} utterances: {comparison['better']:,} with fewer errors, "
        f"{comparison['worse']:,} with more",
    ]
    for side, ids in (
        ("this evaluation", comparison["only_here"]),
        ("the baseline", comparison["only_there"]),
    ):
        if ids:
            more = ", ..." if len(ids) > 3 else ""
            lines.append(
                f"not compared: {len(ids):,} utterances only in {side}: {', '.join(ids[:3])}{more}"
            )
    return lines


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _comparison(figures: Figures) -> str:
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


def _charts(scores: Scores, main: MainRate) -> str:
    name, unit, groups = main.name, main.unit, scores.groups
    speakers = sorted(groups.by_speaker.items(), key=lambda item: -_rate(item[1]))
    worst = dict(speakers[:_MOST_BARS])
    note = f"worst {len(worst)} of {len(speakers)}, " if len(worst) < len(speakers) else ""
    return (
        (_chart(f"{name} by speaker", worst, unit, note) if worst else "")
        + _chart(f"{name} by duration", groups.by_duration, unit)
        + _chart(f"{name} by confidence", groups.by_confidence, unit)
    )


def _rate(counts: ErrorCounts) -> float:
    return counts.rate if counts.reference_words else 0.0


def _chart(heading: str, groups: Mapping[str, ErrorCounts], unit: str, note: str = "") -> str:
    """Return horizontal bars as long as each group's rate, divided into its three kinds of errors.

    Positions are percentages of the drawing, so that it fits any width at the same font size.
    """
    longest = max(map(_rate, groups.values())) or 1.0
    bars = [
        _bar(label, counts, unit, top=i * _BAR_HEIGHT_PIXELS, longest=longest)
        for i, (label, counts) in enumerate(groups.items())
    ]
    return (
        f"<section><h2>{heading} <small>{note}with number of {unit}</small></h2>"
        f'<svg role="img" aria-label="{heading}"'
        f' width="100%" height="{len(groups) * _BAR_HEIGHT_PIXELS}">{"".join(bars)}</svg></section>'
    )


def _bar(label: str, counts: ErrorCounts, unit: str, *, top: int, longest: float) -> str:
    """Return one bar of a chart whose longest bar is of the rate `longest`."""
    short = label if len(label) <= 12 else f"{label[:11]}…"
    parts = [
        f"<g><title>{escape(label)}: {counts.errors:,} errors in {counts.reference_words:,}"
        f' {unit}</title><text x="0" y="{top + 17}">{escape(short)}</text>'
    ]
    left = 32.0
    if counts.reference_words:
        for kind in ("substitutions", "deletions", "insertions"):
            width = 26 * getattr(counts, kind) / counts.reference_words / longest
            parts.append(
                f'<rect class="{_css_class(kind)}" x="{left:.2f}%" y="{top + 5}"'
                f' width="{width:.2f}%" height="{_BAR_HEIGHT_PIXELS - 10}"/>'
            )
            left += width
    percent = _number(100 * counts.rate if counts.reference_words else None, 1)
    parts.append(
        f'<text class="value" x="{left:.2f}%" dx="8" y="{top + 17}">{percent} %</text>'
        f'<text class="words" x="100%" y="{top + 17}">{counts.reference_words:,}</text></g>'
    )
    return "".join(parts)


def _confusion_lists(scores: Scores) -> str:
    """Return the most frequent errors of each kind. A click shows the utterances that have them."""
    confusions = Counter(
        (edit.reference, edit.hypothesis)
        for alignment in scores.alignments
        for edit in alignment
        if edit.op != "equal"
    )
    items: dict[str, list[str]] = {"Substitutions": [], "Deletions": [], "Insertions": []}
    for (reference, hypothesis), count in confusions.most_common():
        kind = (
            "Insertions"
            if reference is None
            else ("Deletions" if hypothesis is None else "Substitutions")
        )
        before, after = escape(reference or "∅"), escape(hypothesis or "∅")
        items[kind].append(
            f'<li><button type="button" data-find="{before}→{after}"><bdi>{before}</bdi> →'
            f" <bdi>{after}</bdi></button>"
            f"<b>{count:,}</b></li>"
        )
    lists = "".join(
        f'<section><h2><i class="{_css_class(kind)}"></i>{kind}'
        f" <small>{len(of_kind):,} different</small></h2>"
        + (f"<ol>{''.join(of_kind[:_MOST_LIST_ITEMS])}</ol>" if of_kind else "<p>None.</p>")
        + "</section>"
        for kind, of_kind in items.items()
    )
    return f'<div class="triple">{lists}</div>'


def _table(
    rows: Sequence[Mapping[str, object]], main: MainRate, audio_wanted: bool, compared: bool
) -> str:
    with_audio = sum(row["audio"] is not None for row in rows)
    note = ""
    if audio_wanted and with_audio < len(rows):
        note = (
            f"<p>This page contains the recordings of {with_audio:,} of {len(rows):,} utterances,"
            " those with the most errors first. Other recordings play only if they are files of"
            " their own and neither they nor this page have been moved.</p>"
        )
    gain = " Gain: errors of the baseline minus errors of this recognizer." if compared else ""
    heads = [
        f'<button type="button" data-sort="{key}">{name}</button>'
        for key, name in (
            ("id", "Utterance"),
            ("reference", "Transcript"),
            ("seconds", "Seconds"),
            ("words", main.unit.capitalize()),
            ("errors", "Errors"),
            ("rate", f"{main.name} %"),
            ("sure", "Confidence %"),
            *([("gain", "Gain")] if compared else []),
        )
    ]
    return f"""<section class="utterances"><h2>Utterances</h2>
<p>The recognized text, with the reference above every error:
<span class="word sub"><span>reference</span><span>recognized</span></span>
<span class="word del"><span>deleted</span><span>∅</span></span>
<span class="word ins"><span>∅</span><span>inserted</span></span></p>
<p>Click an utterance to see its words in time. Confidence: mean over its words.{gain}</p>
{note}<noscript><p>The table needs JavaScript; hypotheses.jsonl has the same texts.</p></noscript>
<form class="toolbar"><input type="search" dir="auto"
 placeholder="Search text, utterance or speaker" aria-label="Search">
<label><input type="checkbox"> only utterances with errors</label>
<output></output></form>
{table(heads, (), attributes=f' data-metric="{main.name.lower()}"')}
<div id="end"></div></section>"""
