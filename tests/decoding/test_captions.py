"""CTM, SubRip and WebVTT against texts written by hand, and read back."""

import random
import re

import pytest

from asr_jax.decoding.captions import captions, ctm, srt, vtt
from asr_jax.types import Word

WORDS = [
    Word("TO", 0.08, 0.16, 0.9),
    Word("BE & <NOT>", 3599.9996, 3600.04, 0.25),
]


def test_formats_equal_texts_written_by_hand():
    assert ctm(WORDS[:1], "my file") == "my_file 1 0.080 0.080 TO 0.9000\n"
    assert srt(WORDS) == (
        "1\n00:00:00,080 --> 00:00:01,080\nTO\n\n2\n01:00:00,000 --> 01:00:01,000\nBE & <NOT>\n"
    )
    assert vtt(WORDS) == (
        "WEBVTT\n\n00:00:00.080 --> 00:00:01.080\nTO\n\n"
        "01:00:00.000 --> 01:00:01.000\nBE &amp; &lt;NOT&gt;\n"
    )
    assert ctm([], "a") == srt([]) == "" and vtt([]) == "WEBVTT\n"


def speech(seed: int, pauses: bool) -> list[Word]:
    draw, now, words = random.Random(seed), 0.0, []
    for n in range(200):
        start = now + draw.choice([0, 0.04, 0.5, 1.5] if pauses else [0, 0.04])
        now = start + draw.choice([0.04, 0.2, 0.6])
        words.append(Word(f"{n}" + "x" * draw.choice([0, 3, 60]), start, now, 1.0))
    return words


@pytest.mark.parametrize("seed, pauses", [(0, True), (1, False)])
def test_captions_hold_every_word_at_its_time_and_do_not_overlap(seed, pauses):
    words = speech(seed, pauses)
    found = list(captions(words))
    assert " ".join(line for c in found for line in c.lines).split() == [w.text for w in words]
    rest = iter(words)
    for caption, after in zip(found, [*found[1:], None]):
        own = [next(rest) for line in caption.lines for _ in line.split()]
        assert caption.start_seconds == own[0].start_seconds < caption.end_seconds
        assert len(caption.lines) <= 2 or len(own) == 1
        assert all(len(line) <= 42 or " " not in line for line in caption.lines)
        assert own[-1].end_seconds - own[0].start_seconds <= 7
        gaps = [b.start_seconds - a.end_seconds for a, b in zip(own, own[1:])]
        assert all(gap < 1 for gap in gaps)
        if after is not None:
            assert own[-1].end_seconds <= caption.end_seconds <= after.start_seconds


def shown(text: str) -> list[tuple[float, float]]:
    """Return the start and end, in seconds, of every caption in SubRip or WebVTT."""
    clock = r"(\d+):(\d\d):(\d\d)[.,](\d{3})"
    return [
        tuple(
            3600 * int(h) + 60 * int(m) + int(s) + int(ms) / 1000
            for h, m, s, ms in (found[:4], found[4:])
        )
        for found in re.findall(f"^{clock} --> {clock}$", text, re.M)
    ]


@pytest.mark.parametrize(
    "times",
    [
        [(0, 0)] * 60,
        [(0, 0.04)] * 60,
        [(5, 5)] * 30 + [(5.0005, 5.001)] * 30,
        [(0, 0)] * 30 + [(0.3 + n, 0.3 + n) for n in range(30)],
        [(n * 0.0005, n * 0.0005) for n in range(60)],
        [(n // 20, n // 20) for n in range(60)],
        [(9, 9), *[(0, 0)] * 59],
    ],
)
@pytest.mark.parametrize("characters", [5, 50])
def test_every_caption_is_shown_for_a_while_whatever_the_times(times, characters):
    words = [Word("x" * characters, float(start), float(end), 1.0) for start, end in times]
    for text in (srt(words), vtt(words)):
        assert text.split().count("x" * characters) == len(words)
        times_shown = shown(text)
        assert len(times_shown) > 4
        assert all(start < end for start, end in times_shown)
        assert all(end <= start for (_, end), (start, _) in zip(times_shown, times_shown[1:]))


def test_all_formats_contain_the_words_at_their_times():
    words = speech(2, True)
    texts = [word.text for word in words]
    timeless = lambda text: re.sub(r"^(\d+\n)?[\d:.,]+ --> [\d:.,]+$", "", text, flags=re.M)
    assert timeless(srt(words)).split() == texts
    assert timeless(vtt(words)).split() == ["WEBVTT", *texts]
    lines = [line.split() for line in ctm(words, "a").splitlines()]
    assert [line[4] for line in lines] == texts
    for word, (_, _, start, duration, _, _) in zip(words, lines):
        assert float(start) == pytest.approx(word.start_seconds, abs=1e-3)
        assert float(start) + float(duration) == pytest.approx(word.end_seconds, abs=2e-3)
