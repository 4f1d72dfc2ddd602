"""Counts beside those of NIST's sclite (Debian: apt-get install sctk)."""

import random
import re
import shutil
import subprocess

import pytest

from asr_jax.scoring import wer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("sctk"), reason="needs sclite: apt-get install sctk"),
]


def sclite(folder, pairs: list[tuple[list[str], list[str]]]) -> list[tuple[int, int, int]]:
    """(substitutions, deletions, insertions) of every pair."""
    for name, side in (("ref", 0), ("hyp", 1)):
        lines = (f"{' '.join(pair[side])} (spk_{n:05})\n" for n, pair in enumerate(pairs))
        (folder / name).write_text("".join(lines))
    arguments = "sctk sclite -s -r ref trn -h hyp trn -i rm -o pra stdout".split()
    out = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"id: \(spk_(\d+)\)\nScores: \(#C #S #D #I\) \d+ (\d+) (\d+) (\d+)", out)
    assert [int(n) for n, *_ in found] == list(range(len(pairs)))
    return [(int(s), int(d), int(i)) for _, s, d, i in found]


def garbled(rng: random.Random, said: list[str], rate: float, vocabulary: list[str]) -> list[str]:
    heard = []
    for word in said:
        draw = rng.random()
        if draw < rate / 3:
            continue
        heard.append(rng.choice(vocabulary) if draw < 2 * rate / 3 else word)
        if draw > 1 - rate / 3:
            heard.append(rng.choice(vocabulary))
    return heard


def cheapest(said: list[str], heard: list[str], weights: tuple[int, int]) -> int:
    """Least sum of a substitution's weight and that of a deletion or insertion."""
    substitution, gap = weights
    row = [gap * j for j in range(len(heard) + 1)]
    for i, word in enumerate(said, 1):
        diagonal, row[0] = row[0], gap * i
        for j, other in enumerate(heard, 1):
            best = min(row[j] + gap, row[j - 1] + gap, diagonal + substitution * (word != other))
            diagonal, row[j] = row[j], best
    return row[-1]


def pairs_of(seed: int, rate: float, words: int) -> list[tuple[list[str], list[str]]]:
    rng = random.Random(seed)
    vocabulary = [f"w{n}" for n in range(words)]
    said = [rng.choices(vocabulary, k=rng.randint(1, 30)) for _ in range(1500)]
    return [(one, garbled(rng, one, rate, vocabulary)) for one in said]


def test_wer_is_sclites_on_errors_of_a_recogniser(tmp_path):
    pairs = pairs_of(0, rate=0.15, words=2000)
    judged = sclite(tmp_path, pairs)
    for (said, heard), theirs in zip(pairs, judged):
        assert wer.count_errors(said, heard).errors == sum(theirs), (said, heard)


def test_sclite_differs_only_as_its_weights_do(tmp_path):
    """It minimises 4 S + 3 (D + I), so that among many errors it has a few more than the fewest."""
    pairs = pairs_of(1, rate=0.7, words=12)
    judged = sclite(tmp_path, pairs)
    for (said, heard), (s, d, i) in zip(pairs, judged):
        assert 4 * s + 3 * (d + i) == cheapest(said, heard, (4, 3))
        assert wer.count_errors(said, heard).errors == cheapest(said, heard, (1, 1)) <= s + d + i
