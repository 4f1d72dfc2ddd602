"""Reports on a prepared dataset: durations, dropped recordings, and what a config leaves out."""

import collections
import dataclasses
import html
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from asr_jax.audio.samples import AudioError, as_mp3
from asr_jax.config import Config
from asr_jax.config_file import load_config
from asr_jax.data.buckets import Buckets
from asr_jax.data.recordings import read_recording
from asr_jax.data.selection import WITHOUT_CTC
from asr_jax.data.sources.prepared import read_prepared
from asr_jax.experiment.corpus import limits_of, training_corpus, usable_utterances
from asr_jax.experiment.tasks import task_of
from asr_jax.experiment.training_buckets import buckets_for, describe_buckets, training_lengths
from asr_jax.pages.histogram import histogram, round_step
from asr_jax.survey.page import render_data_page
from asr_jax.survey.rows import Row
from asr_jax.text import Tokenizer
from asr_jax.text_files import escaped
from asr_jax.types import Skipped, Utterance

BAR_WIDTH, PRINTED_BARS, DRAWN_BARS = 50, 15, 40
DEFAULT_CONFIG = "own_data"
SNIPPET_HZ, SNIPPET_SECONDS = 16_000, 15
# Size of the picture and positions of its axes, in pixels.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 70, 700, 50, 270


def write_report(out: Path, seconds: np.ndarray, dropped: Sequence[Skipped]) -> str:
    """Write dropped.jsonl and durations.svg into `out`; return the text to print."""
    reasons = _list(out / "dropped.jsonl", dropped)
    hours = f"{len(seconds)} recordings, {seconds.sum() / 3600:.2f} hours"
    picture = escaped(_picture(f"{out.name}: {hours}", seconds))
    (out / "durations.svg").write_text(picture, encoding="utf-8")
    counts, edges = histogram(seconds, PRINTED_BARS)
    lines = [f"{out}: {hours} (histogram in durations.svg)"]
    for count, low, high in zip(counts, edges, edges[1:]):
        bar = "#" * round(BAR_WIDTH * count / counts.max())
        lines.append(f"{low:7.5g} to {high:6.5g} s {count:8d} {bar}")
    return "\n".join([*lines, *(f"dropped: {reason}" for reason in reasons)])


def write_data_page(
    page: Path,
    name: str,
    rows: Sequence[Row],
    dropped: Sequence[Skipped],
    places: Mapping[str, Utterance],
    config: Path | None,
) -> None:
    """Write the page that shows what is in the data; `places` has each id's recording to play."""

    def snippet(id: str) -> bytes | None:
        try:
            samples = read_recording(places[id], sample_rate_hz=SNIPPET_HZ)
        except AudioError:
            return None
        return as_mp3(samples[: SNIPPET_SECONDS * SNIPPET_HZ], SNIPPET_HZ)

    known = [Utterance(row.id, page, row.text, row.seconds, row.speaker) for row in rows]
    html = render_data_page(name, rows, dropped, _shapes(known, config), snippet)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(escaped(html), encoding="utf-8")


def _shapes(utterances: list[Utterance], path: Path | None) -> str:
    """Return the table of the batches that training with the config would have on one device."""
    name = str(path or DEFAULT_CONFIG)
    try:
        config = load_config(path or Path(DEFAULT_CONFIG))
        if config.objective.is_language_model:
            return f"{name}: a language model does not train on recordings"
        data = replace(config.data, train=name, more_train=(), train_weights=())
        config = replace(config, data=data)
        stated = Buckets.of(config.data)
        with tempfile.TemporaryDirectory() as folder:
            corpus, tokenizer = training_corpus(
                config,
                Path(folder),
                limits=limits_of(config, stated),
                read=lambda _: (utterances, []),
            )
        buckets = stated or buckets_for(
            config,
            training_lengths(config, corpus),
            tokenizer.vocabulary_size,
            parts=config.train.accumulate,
        )
        plan = task_of(config).plan(config, corpus, buckets)
    except (ValueError, OSError) as error:
        return f"{name}: {error}"
    return "\n".join([f"{name}, one device", *describe_buckets(plan, is_language_model=False)])


def write_unfit(out: Path, config: Config, name: str, *, tokenizer: Path | None) -> str:
    """Write unfit.jsonl, what training with the config would leave out; return the text to print.

    `tokenizer` is the model of the config's run, if it has one. Nothing is written if the tokenizer
    is yet to be trained and is not one of characters: then the labels are unknown.
    """
    utterances = read_prepared(out)
    if path := tokenizer or config.tokenizer.model:
        model = Tokenizer.load(path)
    elif config.tokenizer.kind == "char":
        with tempfile.TemporaryDirectory() as folder:
            texts = [utterance.text for utterance in utterances]
            model = Tokenizer.train(
                texts,
                kind="char",
                vocabulary_size=0,
                path=Path(folder) / "tokenizer.model",
                normalization=config.tokenizer.normalization,
            )
    else:
        return (
            f"{name}: cannot tell which recordings are too short for their text, because its "
            f"{config.tokenizer.kind} tokenizer is yet to be trained; pass a run's config.json, "
            "next to its tokenizer.model"
        )
    _, _, unfit = usable_utterances(config, utterances, model)
    reasons = _list(out / "unfit.jsonl", unfit)
    if not unfit:
        return f"{name}: all of {out} can be trained on"
    return "\n".join(
        f"{name}: {reason}" if WITHOUT_CTC in reason else f"{name} would leave out: {reason}"
        for reason in reasons
    )


def _list(path: Path, skipped: Sequence[Skipped]) -> list[str]:
    """Write the skipped utterances to a file; return a summary line for each kind of reason."""
    lines = (json.dumps(dataclasses.asdict(item)) + "\n" for item in skipped)
    path.write_text("".join(lines), encoding="utf-8")
    kinds = collections.Counter(item.reason.partition(":")[0] for item in skipped)
    return [
        f"{number} recordings, {kind} (listed in {path})" for kind, number in kinds.most_common()
    ]


def _picture(title: str, seconds: np.ndarray) -> str:
    """Return the histogram as SVG."""
    counts, edges = histogram(seconds, DRAWN_BARS)
    step = max(1.0, round_step(float(counts.max()), 5))
    top = step * np.ceil(counts.max() / step)
    x = lambda value: LEFT + (RIGHT - LEFT) * value / edges[-1]
    y = lambda count: BOTTOM - (BOTTOM - TOP) * count / top
    median = f"median {np.median(seconds):.3g} s, {seconds.min():.3g} to {seconds.max():.3g} s"
    elements = [
        f'<text x="{LEFT}" y="20" font-weight="bold">{html.escape(title)}</text>',
        f'<text x="{LEFT}" y="38">{median}</text>',
        f'<text x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 8}" text-anchor="middle">seconds</text>',
    ]
    for count in np.arange(0, top + step / 2, step):
        elements += [
            f'<path d="M{LEFT} {y(count):.1f}H{RIGHT}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{y(count) + 4:.1f}" text-anchor="end">{count:,.5g}</text>',
        ]
    for value in np.arange(0, edges[-1] * 1.001, round_step(float(edges[-1]), 10)):
        elements.append(
            f'<text x="{x(value):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{value:.5g}</text>'
        )
    for count, low, high in zip(counts, edges, edges[1:]):
        elements.append(
            f'<path d="M{x(low) + 0.5:.1f} {BOTTOM}V{y(count):.1f}H{x(high) - 0.5:.1f}V{BOTTOM}z" '
            f'fill="#36c"><title>{low:.5g} to {high:.5g} s: {count}</title></path>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="{WIDTH}" height="{HEIGHT}" '
        'fill="#fff"/>\n' + "\n".join(elements) + "\n</svg>\n"
    )
