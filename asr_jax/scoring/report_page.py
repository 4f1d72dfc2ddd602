"""report.html: one page that needs nothing from anywhere, and says so to the browser."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

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
    shown = f"worst {len(worst)} of {len(speakers)}" if len(worst) < len(speakers) else ""
    charts = _chart("WER by speaker", dict(worst), shown) if speakers else ""
    charts += _chart("WER by duration", durations)
    charts += _chart("WER by confidence", confidences, "the mean of an utterance's words")
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
 media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{escape(title)}: {_number(figures["wer"])} % WER</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<header><h1>{escape(title)}</h1><p>{subtitle}</p></header>
{_headline(figures)}
{_comparison(figures)}
{_facts(figures["facts"])}
<div class="pair">{charts}</div>
{_confusion_lists(confusions)}
{_table(rows, audio_wanted)}
</main>
<script type="application/json" id="rows">{data}</script>
{audio}
<script>{_SCRIPT}</script>
</body>
</html>
"""


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
        y, x = i * height, 22.0
        short = label if len(label) <= 12 else f"{label[:11]}…"
        bars.append(
            f"<g><title>{escape(label)}: {counts.errors:,} errors in {counts.reference_words:,}"
            f' words</title><text x="0" y="{y + 17}">{escape(short)}</text>'
        )
        for kind in ("substitutions", "deletions", "insertions"):
            if counts.reference_words:
                width = 42 * getattr(counts, kind) / counts.reference_words / longest
                bars.append(
                    f'<rect class="{kind[:3]}" x="{x:.2f}%" y="{y + 5}" width="{width:.2f}%"'
                    f' height="{height - 10}"/>'
                )
                x += width
        percent = _number(100 * counts.rate if counts.reference_words else None, 1)
        bars.append(
            f'<text class="value" x="{x:.2f}%" dx="8" y="{y + 17}">{percent} %</text>'
            f'<text class="words" x="100%" y="{y + 17}">{counts.reference_words:,} words</text></g>'
        )
    return (
        f'<section><h2>{heading} <small>{note}</small></h2><svg role="img" aria-label="{heading}"'
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


def _table(rows: Sequence[Mapping], audio_wanted: bool) -> str:
    with_audio = sum(row["audio"] is not None for row in rows)
    note = ""
    if audio_wanted and with_audio < len(rows):
        note = (
            f"<p>The recordings of {with_audio:,} of {len(rows):,} utterances are in this page,"
            " those with the most errors first; the others did not fit or cannot be played.</p>"
        )
    heads = "".join(
        f'<th scope="col"><button type="button" data-sort="{key}">{name}</button></th>'
        for key, name in (
            ("id", "Utterance"),
            ("said", "Transcript"),
            ("seconds", "Seconds"),
            ("words", "Words"),
            ("errors", "Errors"),
            ("rate", "WER %"),
        )
    )
    return f"""<section class="utterances"><h2>Utterances</h2>
<p>What was recognised, with what was said above every error:
<span class="word sub"><span>said</span><span>heard</span></span>
<span class="word del"><span>missed</span><span>∅</span></span>
<span class="word ins"><span>∅</span><span>invented</span></span></p>
{note}<noscript><p>The table needs JavaScript; hypotheses.jsonl has the same text.</p></noscript>
<form class="toolbar"><input type="search" placeholder="Search text, utterance or speaker"
 aria-label="Search"><label><input type="checkbox"> only with errors</label>
<output></output></form>
<table><thead><tr>{heads}</tr></thead><tbody></tbody></table><div id="end"></div></section>"""


_STYLE = """
:root {
  --page: #f7f6f3; --card: #fff; --ink: #1d1c1a; --soft: #65625b; --line: #e4e1da;
  --sub: #d18a00; --del: #cf3f3f; --ins: #2f74d0; --focus: #2f74d0;
  --sub-ink: #7a4b00; --del-ink: #a11d1d; --ins-ink: #0f4b9c;
  --sub-back: #fdf0d5; --del-back: #fde4e3; --ins-back: #e0edff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141517; --card: #1d1f22; --ink: #eceae6; --soft: #a3a09a; --line: #33363b;
    --sub: #e0a22e; --del: #e8645f; --ins: #5c9cf0; --focus: #8cc2ff;
    --sub-ink: #f6cd7d; --del-ink: #ffaaa5; --ins-ink: #a3cdff;
    --sub-back: #3b2e12; --del-back: #43201f; --ins-back: #18304d;
  }
}
* { box-sizing: border-box; margin: 0; }
body {
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1200px; margin: auto; padding: clamp(1rem, 4vw, 3rem); display: grid;
  gap: 1.25rem; grid-template-columns: minmax(0, 1fr); }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; letter-spacing: -0.02em;
  overflow-wrap: anywhere; }
h2 { font-size: 1rem; font-weight: 600; }
h2 small, header p, .wer p:last-child, dt, .tiles dd + dd, .utterances > p, output, label {
  color: var(--soft); font-size: .875rem; font-weight: 400; }
main > section, main > div > section, .facts {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1.25rem 1.5rem; min-width: 0; }
.pair, .triple { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.headline { display: flex; flex-wrap: wrap; gap: 1.5rem 3rem; }
.big { font-size: clamp(3rem, 8vw, 4.25rem); font-weight: 650; line-height: 1.15;
  letter-spacing: -0.04em; }
.big small { font-size: .45em; font-weight: 400; color: var(--soft); letter-spacing: 0; }
.tiles { flex: 1 1 24rem; display: grid; gap: 1.1rem 1.5rem; align-content: center;
  grid-template-columns: repeat(3, 1fr); }
.tiles dd { font-size: 1.35rem; font-weight: 600; line-height: 1.3; }
.tiles small { font-size: .7em; font-weight: 400; color: var(--soft); }
i { display: inline-block; width: .65em; height: .65em; border-radius: 3px; margin-right: .5em; }
i.sub { background: var(--sub); }
i.del { background: var(--del); }
i.ins { background: var(--ins); }
.facts { display: flex; flex-wrap: wrap; gap: .75rem 2.25rem; }
.facts dd { overflow-wrap: anywhere; }
svg { display: block; margin-top: .75rem; overflow: visible; }
svg text { fill: var(--ink); font-size: 13px; } svg .value { font-weight: 600; }
svg .words { fill: var(--soft); text-anchor: end; }
rect.sub { fill: var(--sub); } rect.del { fill: var(--del); } rect.ins { fill: var(--ins); }
ol { list-style: none; padding: 0; margin-top: .5rem; }
li { display: flex; justify-content: space-between; gap: 1rem; }
li b { font-weight: 400; color: var(--soft); }
.triple p { margin-top: .5rem; color: var(--soft); }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  text-align: inherit; cursor: pointer; }
li button { overflow-wrap: anywhere; min-width: 0; } li button:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; border-radius: 4px; }
.toolbar { position: sticky; top: 0; z-index: 1; background: var(--card); display: flex;
  flex-wrap: wrap; align-items: center; gap: .5rem 1.25rem; padding: .75rem 0; }
.toolbar [type=search] { flex: 1 1 18rem; min-width: 0; font: inherit; color: inherit;
  background: var(--page); border: 1px solid var(--line); border-radius: 8px;
  padding: .45rem .75rem; }
table { width: 100%; border-collapse: collapse; }
th { font-size: .875rem; font-weight: 500; color: var(--soft); white-space: nowrap; }
th, td { text-align: right; padding: .6rem 0 .6rem 1.25rem; vertical-align: baseline;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:nth-child(2), td:nth-child(2) { text-align: left; width: 100%; }
th[aria-sort] { color: var(--ink); }
th[aria-sort=ascending] button::after { content: " ▲"; font-size: .7em; }
th[aria-sort=descending] button::after { content: " ▼"; font-size: .7em; }
td:first-child { white-space: nowrap; font-size: .875rem; }
.name { display: flex; align-items: baseline; gap: .75rem; }
.name div { max-width: 15rem; overflow: hidden; text-overflow: ellipsis; }
.name small { display: block; color: var(--soft); }
td.text { overflow-wrap: anywhere; line-height: 1.8; }
.none { color: var(--soft); }
.word { display: inline-block; text-align: center; line-height: 1.4; margin: 2px 0;
  padding: 0 .35em; border-radius: 5px; max-width: 100%; }
.word span { display: block; }
.word span:first-child { font-size: .8em; }
.word.sub { background: var(--sub-back); color: var(--sub-ink); }
.word.del { background: var(--del-back); color: var(--del-ink); }
.word.ins { background: var(--ins-back); color: var(--ins-ink); }
.play { width: 2rem; height: 2rem; border-radius: 50%; text-align: center; font-size: .7rem;
  border: 2px solid var(--line);
  background: conic-gradient(var(--ins-back) var(--played, 0%), transparent 0); }
.play:hover { border-color: var(--ins); }
@media (max-width: 720px) {
  main > section, main > div > section, .facts { padding: 1rem; }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  table, tbody { display: block; }
  thead tr { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding-bottom: .5rem;
    border-bottom: 1px solid var(--line); }
  th, td, th:nth-child(2), td:nth-child(2) { padding: 0; border: 0; width: auto; }
  tbody tr { display: flex; flex-wrap: wrap; gap: .35rem 1rem; padding: .75rem 0;
    border-bottom: 1px solid var(--line); }
  tbody td { font-size: .875rem; color: var(--soft); }
  td:first-child, td.text { flex: 1 1 100%; }
  td.text { font-size: 1rem; color: var(--ink); }
  td[data-unit]::after { content: " " attr(data-unit); }
}
@media print { .toolbar { display: none; } body { background: none; } }
"""

_SCRIPT = """
"use strict";
const rows = JSON.parse(document.getElementById("rows").textContent);
const collator = new Intl.Collator(undefined, {numeric: true});
const NOTHING = "∅", CHUNK = 50;
for (const row of rows) {
  const said = [], heard = [];
  row.mistakes = [];
  for (const piece of row.text) {
    const [a, b] = typeof piece === "string" ? [piece, piece] : piece;
    if (a !== null) said.push(a);
    if (b !== null) heard.push(b);
    if (typeof piece !== "string") row.mistakes.push(`${a ?? NOTHING}→${b ?? NOTHING}`);
  }
  row.said = said.join(" ");
  row.found = [row.id, row.speaker, row.said, heard.join(" ")].join("\\n").toLowerCase();
  row.rate = row.words ? 100 * row.errors / row.words : null;
}

const search = document.querySelector("[type=search]");
const onlyErrors = document.querySelector("[type=checkbox]");
const body = document.querySelector("tbody");
const end = document.getElementById("end");
let key = "errors", direction = -1, shown = [], drawn = 0;

function compare(one, other) {
  const a = one[key], b = other[key];
  if (a === null || b === null) return (a === null) - (b === null);
  return direction * (typeof a === "string" ? collator.compare(a, b) : a - b);
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function transcript(row) {
  const cell = element("td", "text");
  cell.dir = "auto";
  if (!row.text.length) cell.append(element("span", "none", "nothing said, nothing heard"));
  for (const piece of row.text) {
    if (typeof piece === "string") { cell.append(piece, " "); continue; }
    const [said, heard] = piece;
    const kind = said === null ? "ins" : heard === null ? "del" : "sub";
    const word = element("span", `word ${kind}`);
    word.title = {ins: "insertion", del: "deletion", sub: "substitution"}[kind];
    word.append(element("span", "", said ?? NOTHING), element("span", "", heard ?? NOTHING));
    cell.append(word, " ");
  }
  return cell;
}

function draw(row) {
  const line = element("tr"), name = element("div", "name"), label = element("div");
  if (row.audio !== null) name.append(playButton(row));
  label.title = row.id;
  label.append(row.id, element("small", "", row.speaker));
  name.append(label);
  line.append(element("td"), transcript(row));
  line.firstChild.append(name);
  const rate = row.rate === null ? "–" : row.rate.toFixed(1);
  for (const [value, unit] of [[row.seconds.toFixed(2), "s"], [row.words, "words"],
                               [row.errors, "errors"], [rate, "% WER"]]) {
    const cell = element("td", "", value);
    cell.dataset.unit = unit;
    line.append(cell);
  }
  return line;
}

// Ten thousand rows would take seconds to draw: only those down to a screen below the reader's are.
function fill() {
  while (drawn < shown.length && end.getBoundingClientRect().top < 2 * innerHeight)
    body.append(...shown.slice(drawn, drawn += CHUNK).map(draw));
}

function refresh() {
  stop();
  const wanted = search.value.trim(), lower = wanted.toLowerCase();
  shown = rows.filter(row => (!onlyErrors.checked || row.errors) &&
    (wanted.includes("→") ? row.mistakes.includes(wanted) : row.found.includes(lower)));
  shown.sort(compare);
  for (const button of document.querySelectorAll("[data-sort]")) {
    const head = button.parentElement;
    if (button.dataset.sort !== key) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  }
  const count = shown.length.toLocaleString("en");
  document.querySelector("output").textContent =
    shown.length === rows.length ? `${count} utterances` :
    `${count} of ${rows.length.toLocaleString("en")} utterances`;
  body.replaceChildren();
  drawn = 0;
  fill();
}

const player = new Audio();
let playing = null;
function stop() {
  player.pause();
  if (playing) {
    playing.button.textContent = "▶";
    playing.button.setAttribute("aria-label", "Play");
    playing.button.style.removeProperty("--played");
  }
  playing = null;
}
function playButton(row) {
  const button = element("button", "play", "▶");
  button.type = "button";
  button.setAttribute("aria-label", "Play");
  button.onclick = () => {
    const again = playing?.row === row;
    stop();
    if (again) return;
    playing = {row, button};
    button.textContent = "■";
    button.setAttribute("aria-label", "Stop");
    player.src = document.getElementById(`audio-${row.audio}`).textContent;
    player.currentTime = row.offset;
    player.play().catch(() => { if (playing?.row === row) { stop(); button.disabled = true; } });
  };
  return button;
}
player.onended = stop;
player.ontimeupdate = () => {
  if (!playing) return;
  const share = (player.currentTime - playing.row.offset) / playing.row.seconds;
  if (share >= 1) stop();
  else playing.button.style.setProperty("--played", `${100 * share}%`);
};

for (const button of document.querySelectorAll("[data-sort]")) {
  button.onclick = () => {
    const words = ["id", "said"].includes(button.dataset.sort);
    direction = button.dataset.sort === key ? -direction : words ? 1 : -1;
    key = button.dataset.sort;
    refresh();
  };
}
for (const button of document.querySelectorAll("[data-find]")) {
  button.onclick = () => {
    search.value = button.dataset.find;
    refresh();
    search.scrollIntoView({behavior: "smooth"});
  };
}
document.querySelector("form").onsubmit = event => event.preventDefault();
search.oninput = onlyErrors.onchange = refresh;
addEventListener("scroll", fill, {passive: true});
addEventListener("resize", fill);
refresh();
"""
