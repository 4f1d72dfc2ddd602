"""What `prepare` tells of what it stored: how long it is, what was dropped, what is too short."""

import collections
import dataclasses
import html
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asr_jax.config import Config
from asr_jax.data.sources.prepared import read_prepared
from asr_jax.experiment.corpus import usable_utterances
from asr_jax.text import Tokenizer
from asr_jax.types import Skipped

BAR_WIDTH, PRINTED_BARS, DRAWN_BARS = 50, 15, 40
# Of the picture, in pixels: all of it, and where its axes begin and end.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 70, 700, 50, 270


def write_report(out: Path, seconds: np.ndarray, dropped: Sequence[Skipped]) -> str:
    """Writes dropped.jsonl and durations.svg into `out`; returns what to print."""
    listed = _list(out / "dropped.jsonl", dropped)
    hours = f"{len(seconds)} recordings, {seconds.sum() / 3600:.2f} hours"
    (out / "durations.svg").write_text(_picture(f"{out.name}: {hours}", seconds), encoding="utf-8")
    counts, edges = _histogram(seconds, PRINTED_BARS)
    lines = [f"{out}: {hours} (durations.svg shows them)"]
    for count, low, high in zip(counts, edges, edges[1:]):
        bar = "#" * round(BAR_WIDTH * count / counts.max())
        lines.append(f"{low:7.5g} to {high:6.5g} s {count:8d} {bar}")
    return "\n".join([*lines, *(f"dropped: {kind}" for kind in listed)])


def write_unfit(out: Path, config: Config, name: str, *, tokenizer: Path | None) -> str:
    """Writes unfit.jsonl, what training by the config would leave out; returns what to print.

    Where there is no tokenizer yet, and it is not one of characters, nothing is known of labels.
    """
    utterances = read_prepared(out)
    if known := tokenizer or config.tokenizer.model:
        model = Tokenizer.load(known)
    elif config.tokenizer.kind == "char":
        with tempfile.TemporaryDirectory() as folder:
            texts = [utterance.text for utterance in utterances]
            model = Tokenizer.train(
                texts, kind="char", vocabulary_size=0, path=Path(folder) / "tokenizer.model"
            )
    else:
        return (
            f"{name}: recordings too short for their text are not looked for, as its "
            f"{config.tokenizer.kind} tokenizer is yet to be trained; a run's config.json, with "
            "tokenizer.model beside it, tells"
        )
    _, _, unfit = usable_utterances(config, utterances, model)
    left_out = _list(out / "unfit.jsonl", unfit)
    if not unfit:
        return f"{name}: all of {out} can be trained on"
    return "\n".join(f"{name} would leave out: {kind}" for kind in left_out)


def _list(path: Path, skipped: Sequence[Skipped]) -> list[str]:
    """Writes them, and says how many there are of each kind."""
    path.write_text("".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in skipped))
    kinds = collections.Counter(one.reason.partition(":")[0] for one in skipped)
    return [
        f"{number} recordings, {kind} (listed in {path})" for kind, number in kinds.most_common()
    ]


def _round_step(largest: float, most: int) -> float:
    """The least of 1, 2 and 5 times a power of ten of which at most `most` make `largest`."""
    power = 10.0 ** np.floor(np.log10(largest / most))
    return next(times * power for times in (1, 2, 5, 10) if largest <= most * times * power)


def _histogram(seconds: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts between round edges, from the first to the last that is not zero."""
    step = _round_step(float(seconds.max()), most)
    bars = np.floor(seconds / step + 1e-9).astype(int)  # 2.4 / 0.2 is less than 12
    counts = np.bincount(bars)[bars.min() :]
    return counts, step * np.arange(bars.min(), bars.max() + 2)


def _picture(title: str, seconds: np.ndarray) -> str:
    """The histogram as SVG."""
    counts, edges = _histogram(seconds, DRAWN_BARS)
    step = max(1.0, _round_step(float(counts.max()), 5))
    top = step * np.ceil(counts.max() / step)
    x = lambda value: LEFT + (RIGHT - LEFT) * value / edges[-1]
    y = lambda count: BOTTOM - (BOTTOM - TOP) * count / top
    middle = f"median {np.median(seconds):.3g} s, {seconds.min():.3g} to {seconds.max():.3g} s"
    drawn = [
        f'<text x="{LEFT}" y="20" font-weight="bold">{html.escape(title)}</text>',
        f'<text x="{LEFT}" y="38">{middle}</text>',
        f'<text x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 8}" text-anchor="middle">seconds</text>',
    ]
    for count in np.arange(0, top + step / 2, step):
        drawn += [
            f'<path d="M{LEFT} {y(count):.1f}H{RIGHT}" stroke="#ddd"/>',
            f'<text x="{LEFT - 8}" y="{y(count) + 4:.1f}" text-anchor="end">{count:,.5g}</text>',
        ]
    for value in np.arange(0, edges[-1] * 1.001, _round_step(float(edges[-1]), 10)):
        drawn.append(
            f'<text x="{x(value):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{value:.5g}</text>'
        )
    for count, low, high in zip(counts, edges, edges[1:]):
        drawn.append(
            f'<path d="M{x(low) + 0.5:.1f} {BOTTOM}V{y(count):.1f}H{x(high) - 0.5:.1f}V{BOTTOM}z" '
            f'fill="#36c"><title>{low:.5g} to {high:.5g} s: {count}</title></path>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="{WIDTH}" height="{HEIGHT}" '
        'fill="#fff"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )
