"""Histograms count every value in the bar that its edges say, also far-away ones."""

import re

import numpy as np
import pytest

from asr_jax.pages.histogram import FAR, MOST_BARS, histogram, histogram_svg


@pytest.mark.parametrize("far", [[], [3600.0], [70.0, 1e6], [1e9]])
@pytest.mark.parametrize("values", [[0.7], [2.4] * 3, np.arange(1, 700) / 20])
def test_every_value_is_in_its_bar(values, far):
    values = np.array([*values, *far])
    counts, edges = histogram(values, MOST_BARS)
    expected = [
        (values >= low - 1e-6) & (values < high - 1e-6) for low, high in zip(edges, edges[1:])
    ]
    assert counts.tolist() == [within.sum() for within in expected]
    assert counts.sum() == len(values) and 1 <= len(counts) <= MOST_BARS + 1
    widths = np.diff(edges)[:-1]
    assert widths == pytest.approx(widths[:1].repeat(len(widths)))


def test_a_far_value_leaves_the_others_their_bars():
    usual = np.arange(1, 1000) / 100
    counts, edges = histogram(np.append(usual, 3600.0), MOST_BARS)
    assert counts[-1] == 1 and edges[-2] <= FAR * 10 and np.count_nonzero(counts) > 15
    svg = histogram_svg(np.append(usual, 3600.0), "Duration", "s")
    assert f">{edges[-2]:.5g} and more<" in svg and "to 3600" in svg
    assert max(map(float, re.findall(r'<rect class="ins" x="([\d.]+)"', svg))) < 560
    assert "and more" not in histogram_svg(usual, "Duration", "s")
