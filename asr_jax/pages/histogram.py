"""Histograms as SVG within a page."""

from html import escape

import numpy as np

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 40, 170


def round_step(largest: float, most_steps: int) -> float:
    """Return the smallest step of 1, 2 or 5 times 10^n with which `most_steps` reach `largest`."""
    power = 10.0 ** np.floor(np.log10(largest / most_steps))
    return next(times * power for times in (1, 2, 5, 10) if largest <= most_steps * times * power)


def histogram(values: np.ndarray, most_bars: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of the bars from the least to the largest value, and their edges.

    Values are not negative, and one of them is positive.
    """
    step = round_step(float(values.max()), most_bars)
    bars = np.floor(values / step + 1e-9).astype(int)  # 2.4 / 0.2 is less than 12
    counts = np.bincount(bars)[bars.min() :]
    return counts, step * np.arange(bars.min(), bars.max() + 2)


def histogram_svg(values: np.ndarray, name: str, unit: str) -> str:
    """Return the histogram of values as an element of a page; each bar has its count as title."""
    counts, edges = histogram(values, 40)
    scale, tall = (WIDTH - LEFT) / edges[-1], (BOTTOM - 20) / counts.max()
    bars = [
        f'<rect class="ins" x="{LEFT + scale * low:.1f}" y="{BOTTOM - tall * count:.1f}" '
        f'width="{max(1.0, scale * (high - low) - 1):.1f}" height="{tall * count:.1f}">'
        f"<title>{low:.5g} to {high:.5g} {escape(unit)}: {count}</title></rect>"
        for count, low, high in zip(counts, edges, edges[1:])
    ]
    ticks = [
        f'<text x="{LEFT + scale * value:.1f}" y="{BOTTOM + 20}" text-anchor="middle">'
        f"{value:.5g}</text>"
        for value in np.arange(0, edges[-1] * 1.001, round_step(float(edges[-1]), 8))
    ]
    largest = f'<text x="{LEFT - 6}" y="26" text-anchor="end">{counts.max():,}</text>'
    return (
        f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" '
        f'style="max-width:{WIDTH}px">{"".join(bars)}{"".join(ticks)}{largest}</svg>'
    )
