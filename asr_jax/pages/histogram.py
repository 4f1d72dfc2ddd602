"""Histograms as SVG, within a page or as a picture of their own."""

from html import escape

import numpy as np

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 560, 200, 48, 12, 172
MOST_BARS = 40
FAR = 2.0


def round_step(largest: float, most_steps: int) -> float:
    """Return the smallest step of 1, 2 or 5 times 10^n with which `most_steps` reach `largest`."""
    power = 10.0 ** np.floor(np.log10(largest / most_steps))
    return next(times * power for times in (1, 2, 5, 10) if largest <= most_steps * times * power)


def histogram(values: np.ndarray, most_bars: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of the bars from the least to the largest value, and their edges.

    Values are not negative, and one of them is positive. Values beyond FAR times the 99th
    percentile would leave little room for the others: the last bar, which is wider, has them all.
    """
    largest = float(values.max())
    shown = np.minimum(values, FAR * max(float(np.quantile(values, 0.99)), largest / most_bars**2))
    step = round_step(float(shown.max()), most_bars)
    bars = np.floor(shown / step + 1e-9).astype(int)  # 2.4 / 0.2 is less than 12
    counts = np.bincount(bars)[bars.min() :]
    edges = step * np.arange(bars.min(), bars.max() + 2)
    edges[-1] = max(edges[-1], step * np.ceil(largest / step + 1e-9))
    return counts, edges


def histogram_svg(values: np.ndarray, name: str, unit: str) -> str:
    """Return the histogram of values as an element of a page; each bar has its count as title."""
    counts, edges = histogram(values, MOST_BARS)
    step = max(1.0, round_step(float(counts.max()), 4))
    top = step * np.ceil(counts.max() / step)
    width = edges[1] - edges[0] if len(counts) > 1 else edges[-1] - edges[0]
    right = edges[-2] + width
    x = lambda value: LEFT + (WIDTH - LEFT) * min(value, right) / right
    y = lambda count: BOTTOM - (BOTTOM - TOP) * count / top
    marks = [
        f'<path class="line" d="M{LEFT} {y(count):.1f}H{WIDTH}"/>'
        f'<text x="{LEFT - 6}" y="{y(count) + 4:.1f}" text-anchor="end">{count:,.5g}</text>'
        for count in np.arange(0, top + step / 2, step)
    ]
    marks += [
        f'<text x="{x(value):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{value:.5g}</text>'
        for value in np.arange(0, right * 1.001, round_step(float(right), 8))
        if right == edges[-1] or x(value) < WIDTH - 80
    ]
    if right < edges[-1]:
        marks.append(
            f'<text x="{WIDTH}" y="{BOTTOM + 20}" text-anchor="end">{edges[-2]:.5g} and more</text>'
        )
    bars = [
        f'<rect class="ins" x="{x(low):.1f}" y="{y(count):.1f}" '
        f'width="{max(1.0, x(high) - x(low) - 1):.1f}" height="{BOTTOM - y(count):.1f}">'
        f"<title>{low:.5g} to {high:.5g} {escape(unit)}: {count}</title></rect>"
        for count, low, high in zip(counts, edges, edges[1:])
    ]
    return (
        f'<svg role="img" aria-label="{escape(name)}" viewBox="0 0 {WIDTH} {HEIGHT}" width="100%">'
        f"{''.join(marks)}{''.join(bars)}</svg>"
    )


def histogram_picture(values: np.ndarray, title: str, subtitle: str, unit: str) -> str:
    """Return the histogram as an SVG file."""
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 40} {HEIGHT + 80}">
<style>text {{ font: 12px sans-serif; }} .line {{ stroke: #ddd; }} .ins {{ fill: #36c; }}</style>
<rect width="100%" height="100%" fill="#fff"/>
<text x="20" y="24" font-weight="bold">{escape(title)}</text>
<text x="20" y="42">{escape(subtitle)}</text>
<svg x="20" y="50" width="{WIDTH}" height="{HEIGHT}">{histogram_svg(values, title, unit)}</svg>
<text x="{WIDTH / 2:g}" y="{HEIGHT + 70}" text-anchor="middle">{escape(unit)}</text>
</svg>
"""
