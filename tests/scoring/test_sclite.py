"""Error counts compared with those of NIST's sclite (Debian: apt-get install sctk)."""

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
    """Return (substitutions, deletions, insertions) of every pair."""
    for name, side in (("ref", 0), ("hyp", 1)):
        lines = (f"{' '.join(pair[side])} (spk_{n:05})\n" for n, pair in enumerate(pairs))
        (folder / name).write_text("".join(lines))
    arguments = "sctk sclite -s -r ref trn -h hyp trn -i rm -o pra stdout".split()
    out = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=True).stdout
    scores = re.findall(r"id: \(spk_(\d+)\)\nScores: \(#C #S #D #I\) \d+ (\d+) (\d+) (\d+)", out)
    assert [int(n) for n, *_ in scores] == list(range(len(pairs)))
    return [(int(s), int(d), int(i)) for _, s, d, i in scores]


def with_errors(
    rng: random.Random, reference: list[str], rate: float, vocabulary: list[str]
) -> list[str]:
    hypothesis = []
    for word in reference:
        draw = rng.random()
        if draw < rate / 3:
            continue
        hypothesis.append(rng.choice(vocabulary) if draw < 2 * rate / 3 else word)
        if draw > 1 - rate / 3:
            hypothesis.append(rng.choice(vocabulary))
    return hypothesis


def least_cost(reference: list[str], hypothesis: list[str], weights: tuple[int, int]) -> int:
    """Return the cost of the cheapest alignment; weights of a substitution and of other edits."""
    substitution, gap = weights
    row = [gap * j for j in range(len(hypothesis) + 1)]
    for i, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], gap * i
        for j, other in enumerate(hypothesis, 1):
            best = min(row[j] + gap, row[j - 1] + gap, diagonal + substitution * (word != other))
            diagonal, row[j] = row[j], best
    return row[-1]


def random_pairs(seed: int, rate: float, vocabulary_size: int) -> list[tuple[list[str], list[str]]]:
    rng = random.Random(seed)
    vocabulary = [f"w{n}" for n in range(vocabulary_size)]
    references = [rng.choices(vocabulary, k=rng.randint(1, 30)) for _ in range(1500)]
    return [(words, with_errors(rng, words, rate, vocabulary)) for words in references]


def test_counts_equal_sclites_at_the_error_rate_of_a_recognizer(tmp_path):
    pairs = random_pairs(0, rate=0.15, vocabulary_size=2000)
    sclite_all = sclite(tmp_path, pairs)
    for pair, sclite_counts in zip(pairs, sclite_all):
        assert wer.count_errors(*pair).errors == sum(sclite_counts), pair


def test_sclite_differs_only_by_its_weights(tmp_path):
    """sclite minimizes 4 S + 3 (D + I), so that its errors may not be the fewest."""
    pairs = random_pairs(1, rate=0.7, vocabulary_size=12)
    sclite_all = sclite(tmp_path, pairs)
    for pair, (s, d, i) in zip(pairs, sclite_all):
        assert 4 * s + 3 * (d + i) == least_cost(*pair, (4, 3))
        assert wer.count_errors(*pair).errors == least_cost(*pair, (1, 1)) <= s + d + i
