"""Counts are those of a shortest edit script and agree with jiwer."""

import math

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_jax.scoring import wer
from asr_jax.scoring.wer import Edit, ErrorCounts

# Few different words, so that alignments are ambiguous and repeats are common.
WORDS = st.lists(st.sampled_from(["a", "b", "A", "over", "overt", "é"]), max_size=8)
SENTENCES = st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=6)
fuzzed = settings(deadline=None, max_examples=200)


def distance(reference: list[str], hypothesis: list[str]) -> int:
    """Compute Levenshtein's recurrence."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, actual in enumerate(hypothesis, 1):
            best = min(row[j] + 1, row[j - 1] + 1, diagonal + (expected != actual))
            diagonal, row[j] = row[j], best
    return row[-1]


@fuzzed
@given(WORDS, WORDS)
def test_an_alignment_spells_both_sides_with_the_fewest_edits(reference, hypothesis):
    columns = wer.align(reference, hypothesis)
    assert [c.reference for c in columns if c.reference is not None] == reference
    assert [c.hypothesis for c in columns if c.hypothesis is not None] == hypothesis
    for op, expected, actual in columns:
        kind = (
            ("equal" if expected == actual else "substitute")
            if expected is not None and actual is not None
            else ("delete" if actual is None else "insert")
        )
        assert op == kind
    ops = [c.op for c in columns]
    counts = wer.count_errors(reference, hypothesis)
    assert counts == ErrorCounts(
        ops.count("substitute"), ops.count("delete"), ops.count("insert"), len(reference)
    )
    assert counts.errors == distance(reference, hypothesis)


@fuzzed
@given(SENTENCES)
def test_counts_of_a_corpus_equal_jiwers(pairs):
    references, hypotheses = zip(*((" ".join(r), " ".join(h)) for r, h in pairs))
    measured = jiwer.process_words(list(references), list(hypotheses))
    counts = wer.total(map(wer.count_word_errors, references, hypotheses))
    assert counts == ErrorCounts(
        measured.substitutions,
        measured.deletions,
        measured.insertions,
        measured.hits + measured.substitutions + measured.deletions,
    )
    assert wer.word_error_rate(references, hypotheses) == pytest.approx(measured.wer, rel=1e-12)
    characters = wer.total(map(wer.count_character_errors, references, hypotheses))
    expected = jiwer.cer(list(references), list(hypotheses))
    assert characters.rate == pytest.approx(expected, rel=1e-12)


def test_an_example_worked_by_hand():
    assert wer.align("the cat sat down".split(), "the hat sat down there".split()) == [
        Edit("equal", "the", "the"),
        Edit("substitute", "cat", "hat"),
        Edit("equal", "sat", "sat"),
        Edit("equal", "down", "down"),
        Edit("insert", None, "there"),
    ]
    counts = wer.count_word_errors("the cat sat down", "the hat sat down there")
    assert counts == ErrorCounts(1, 0, 1, 4) and counts.rate == 0.5


def test_case_counts_and_the_number_of_spaces_does_not():
    assert wer.count_word_errors("Hello there", "hello  there\n").errors == 1
    assert wer.count_character_errors(" Hello   there", "hello there ") == ErrorCounts(1, 0, 0, 11)
    assert wer.count_character_errors("hello there", "hellothere").deletions == 1


def test_silence_has_no_rate_but_its_insertions_count_in_the_corpus():
    silence = wer.count_word_errors("", "hm yes")
    assert silence == ErrorCounts(insertions=2) and math.isnan(silence.rate)
    assert wer.count_word_errors("one two", "") == ErrorCounts(deletions=2, reference_words=2)
    assert wer.word_error_rate(["", "a b c d"], ["hm yes", "a b c d"]) == 0.5
    assert math.isnan(wer.word_error_rate([""], ["hm"]))
    assert math.isnan(wer.word_error_rate([], []))


def test_long_utterances_weigh_more():
    """One wrong word and nine right words are 10 %, although the mean of the rates is 50 %."""
    assert wer.word_error_rate(["a", "b " * 9], ["x", "b " * 9]) == 0.1


def test_sentence_errors_and_groups():
    counts = [ErrorCounts(1, 1, 0, 4), ErrorCounts(reference_words=3), ErrorCounts(0, 0, 1, 0)]
    assert wer.sentence_error_rate(counts) == pytest.approx(2 / 3)
    assert math.isnan(wer.sentence_error_rate([]))
    assert wer.counts_by(["x", "y", "x"], counts) == {
        "x": ErrorCounts(1, 1, 1, 4),
        "y": ErrorCounts(0, 0, 0, 3),
    }


def test_numbers_of_references_and_hypotheses_must_be_equal():
    with pytest.raises(ValueError, match=r"^len\(hypotheses\) = 1: must equal .* = 2$"):
        wer.word_error_rate(["a", "b"], ["a"])


def test_the_interval_of_one_word_utterances_is_binomial():
    """The errors are binomial, so the half-width is 1.96 sqrt(p (1 - p) / n)."""
    n, p = 2000, 0.2
    counts = [ErrorCounts(int(i < n * p), 0, 0, 1) for i in range(n)]
    low, high = wer.bootstrap_interval(counts, seed=1, samples=4000)
    half = 1.959964 * math.sqrt(p * (1 - p) / n)
    # 4000 draws place a 2.5 % quantile to about 4 % of the half-width (four deviations: 8 %).
    assert low == pytest.approx(p - half, abs=0.1 * half)
    assert high == pytest.approx(p + half, abs=0.1 * half)


def test_the_interval_keeps_errors_and_words_of_an_utterance_together():
    """If all utterances have the same rate, all draws have it, whatever the lengths."""
    counts = [ErrorCounts(n, 0, 0, 4 * n) for n in range(1, 30)]
    assert wer.bootstrap_interval(counts, seed=0) == (0.25, 0.25)


def test_the_interval_depends_on_seed_and_confidence_only():
    counts = [ErrorCounts(i % 3, 0, i % 2, 5 + i % 7) for i in range(40)]
    low, high = wer.bootstrap_interval(counts, seed=3)
    assert (low, high) == wer.bootstrap_interval(counts, seed=3)
    assert (low, high) != wer.bootstrap_interval(counts, seed=4)
    wide_low, wide_high = wer.bootstrap_interval(counts, seed=3, confidence=0.999)
    assert wide_low < low < wer.total(counts).rate < high < wide_high


def test_the_interval_without_words():
    low, high = wer.bootstrap_interval([ErrorCounts(insertions=1)], seed=0)
    assert math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, wer.bootstrap_interval([], seed=0)))
    # A quarter of the draws from this pair has only silence and no rate; other rates are 0 or 1.
    pair = [ErrorCounts(insertions=1), ErrorCounts(reference_words=1)]
    assert wer.bootstrap_interval(pair, seed=0) == (0.0, 1.0)


@pytest.mark.parametrize("options", [{"samples": 0}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_invalid_options_of_the_interval_are_rejected(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"^{name} = "):
        wer.bootstrap_interval([ErrorCounts()], seed=0, **options)
