"""N-gram models against explicit back-off and against sums over all labels."""

import functools
import gzip
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.decoding.automaton import Automaton
from asr_jax.decoding.ngram import (
    BEGIN,
    END,
    Entry,
    estimate,
    load_language_model,
    ngram_automaton,
    read_arpa,
)
from asr_jax.text import Tokenizer

GAINS, STEP = jax.jit(Automaton.gains), jax.jit(Automaton.step)
PIECES = ["<blk>", "<unk>", "▁", "A", "B", "C"]
TEXT = [[3, 4, 3], [3, 3, 2, 4], [4], [3, 4, 2, 3, 4, 5], [5, 3, 4]]
# Trigrams with a context that has no shorter one of its own, and C, which only <unk> covers.
ARPA = """\
made by hand

\\data\\
ngram 1=5
ngram 2=4
ngram 3=2

\\1-grams:
-99 <s> -0.3
-0.7 </s>
-1.5 <unk>
-0.5 A -0.2
-0.6 B -0.1

\\2-grams:
-0.2 <s> A -0.4
-0.3 A B -0.5
-0.9 B B
-0.4 B </s>

\\3-grams:
-0.1 <s> A B
-0.25 A B B

\\end\\
"""


def gain(automaton, labels):
    """Return the gain of a sentence, added up label by label."""
    states, total = automaton.start(1), 0.0
    for label in labels:
        total += float(GAINS(automaton, states)[0, label])
        states = STEP(automaton, states, jnp.array([label]))
    return total + float(automaton.ends(states)[0])


def backed_off(ngrams, history, label):
    """Return log P(label | history) by the definition of ARPA files."""
    if (*history, label) in ngrams:
        return ngrams[*history, label].log_probability
    penalty = ngrams[history].back_off if history in ngrams else 0.0
    return penalty + backed_off(ngrams, history[1:], label)


def sentence_log_probability(ngrams, labels, order):
    history, total = (BEGIN,), 0.0
    for label in [*labels, END]:
        total += backed_off(ngrams, history[max(0, len(history) - order + 1) :], label)
        history += (label,)
    return total


@pytest.mark.parametrize("source", ["arpa", "text"])
def test_automaton_equals_explicit_back_off(source, tmp_path):
    if source == "arpa":
        path, order = tmp_path / "a.arpa", 3
        path.write_text(ARPA)
        ngrams = read_arpa(path, PIECES)
        assert ngrams[3,].back_off == pytest.approx(-0.2 * math.log(10))
    else:
        order = 4
        ngrams = estimate(TEXT, order, len(PIECES))
    automaton = ngram_automaton(ngrams, vocabulary_size=len(PIECES), weight=0.7)
    sentences = [[], [3, 4, 4], [5, 5], [4, 4, 4, 3, 4], [2, 3, 4, 4, 3, 5], *TEXT]
    for labels in sentences:
        expected = 0.7 * sentence_log_probability(ngrams, labels, order)
        assert gain(automaton, labels) == pytest.approx(expected, abs=1e-4)
    # The gains of a state do not depend on the other rows.
    states = jnp.arange(len(automaton.back_offs))
    all_gains = GAINS(automaton, states)
    for state in range(len(states)):
        alone = GAINS(automaton, states[state : state + 1])[0]
        np.testing.assert_array_equal(alone, all_gains[state])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_estimated_model_is_a_distribution_and_prefers_its_text(order):
    ngrams = estimate(TEXT, order, len(PIECES))
    histories = [(BEGIN,), (BEGIN, 3), (3, 4), (4, 3, 5), (2, 4, 3), (5, 5, 5)]
    for history in histories:
        cut = history[max(0, len(history) - order + 1) :] if order > 1 else ()
        total = sum(math.exp(backed_off(ngrams, cut, label)) for label in (1, 2, 3, 4, 5, END))
        assert total == pytest.approx(1)
    mean = np.mean([sentence_log_probability(ngrams, labels, order) for labels in TEXT])
    others = itertools.product([2, 3, 4, 5], repeat=3)
    assert mean > np.mean([sentence_log_probability(ngrams, list(o), order) for o in others])


def test_kneser_ney_equals_values_computed_by_hand():
    """The text has the sentences A B, A B, C B."""
    ngrams = estimate([[3, 4], [3, 4], [5, 4]], 2, len(PIECES))
    # Labels seen before A and C: <s>; before B: A and C; before </s>: B. So n1 = 3, n2 = 1.
    discount, total, uniform = 3 / 5, 5, 1 / len(PIECES)
    left_over = discount * 4 / total * uniform
    of_b = (2 - discount) / total + left_over
    of_a = (1 - discount) / total + left_over
    assert math.exp(ngrams[4,].log_probability) == pytest.approx(of_b)
    assert math.exp(ngrams[3,].log_probability) == pytest.approx(of_a)
    # Counts of pairs: <s> A 2, <s> C 1, A B 2, C B 1, B </s> 3. So n1 = n2 = 2, D = 1/3.
    after_a = (2 - 1 / 3) / 2 + 1 / 3 / 2 * of_b
    assert math.exp(ngrams[3, 4].log_probability) == pytest.approx(after_a)


def test_without_unk_missing_pieces_get_the_lowest_probability_in_the_file(tmp_path):
    path = tmp_path / "a.arpa"
    path.write_text(ARPA.replace("ngram 1=5", "ngram 1=4").replace("-1.5 <unk>\n", ""))
    ngrams = read_arpa(path, PIECES)
    automaton = ngram_automaton(ngrams, vocabulary_size=len(PIECES), weight=0.7)
    for labels in ([5], [3, 4, 5, 2], [1, 3]):
        expected = 0.7 * sentence_log_probability(ngrams, labels, 3)
        assert gain(automaton, labels) == pytest.approx(expected, abs=1e-4)
    # The lowest of A and B; <s> does not count.
    assert ngrams[5,].log_probability == pytest.approx(-0.6 * math.log(10))
    assert ngrams[5,] == ngrams[1,] == ngrams[2,]


def test_arpa_files_are_recognized_by_their_contents(tmp_path):
    alphabet = "ABC ABC"
    path = tmp_path / "tokenizer.model"
    tokenizer = Tokenizer.train([alphabet], kind="char", vocabulary_size=0, path=path)
    reference = tmp_path / "a.arpa"
    reference.write_text(ARPA)

    def gains(path) -> list[float]:
        loaded = load_language_model(path, tokenizer, order=2, weight=0.7)
        return [gain(loaded, labels) for labels in ([], [2, 3, 3], [4, 5])]

    expected = gains(reference)
    written = ARPA.encode()
    variants = {
        "a.lm": written,
        "a.lm.gz": gzip.compress(written),
        "b.ARPA": gzip.compress(written),
        "c.arpa.gz": written,
        "plain": b"".join(b"comment\n" for _ in range(200)) + written,
        "marked.lm": b"\xef\xbb\xbf" + written.partition(b"\n\n")[2],
        "windows.lm": written.replace(b"\n", b"\r\n"),
        "tabs.lm": written.replace(b" ", b"\t").replace(b"ngram\t", b"ngram "),
        "blank.lm": written.replace(b"\n", b"\n\n"),
    }
    for name, contents in variants.items():
        (tmp_path / name).write_bytes(contents)
        assert gains(tmp_path / name) == expected, name
    text = tmp_path / "text.gz"
    text.write_bytes(gzip.compress(b"ABC\n"))
    named = tmp_path / "text"
    named.write_text("ABC\n")
    assert gains(text) == gains(named) != expected
    with pytest.raises(ValueError, match=r"has no \\data\\"):
        named.rename(tmp_path / "text.arpa")
        gains(tmp_path / "text.arpa")


@pytest.mark.parametrize(
    "change, warnings",
    [
        # SRILM and CMU's toolkit write n-grams that continue after a sentence's end.
        (
            lambda t: (
                t.replace("ngram 2=4", "ngram 2=6")
                .replace("-0.4 B </s>", "-0.4 B </s> -0.3\n-0.5 </s> A -0.1\n-0.3 A <s> -0.2")
                .replace("ngram 3=2", "ngram 3=4")
                .replace("-0.25 A B B", "-0.25 A B B\n-0.2 B </s> A\n-0.2 </s> <s> A")
            ),
            [],
        ),
        (lambda t: t.replace("<unk>", "<UNK>"), []),
        (lambda t: t.replace("-99 <s>", "-inf <s>"), []),
        # The longest n-grams are no contexts.
        (lambda t: t.replace("-0.25 A B B", "-0.25 A B B -3.0"), []),
        (
            lambda t: t.replace("ngram 1=5", "ngram 1=4").replace("-0.7 </s>\n", ""),
            ["has no </s>; the end of a transcript is not scored"],
        ),
        (
            lambda t: (
                t.replace("ngram 1=5", "ngram 1=4")
                .replace("-99 <s> -0.3\n", "")
                .replace("ngram 2=4", "ngram 2=3")
                .replace("-0.2 <s> A -0.4\n", "")
                .replace("ngram 3=2", "ngram 3=1")
                .replace("-0.1 <s> A B\n", "")
            ),
            ["has no <s>; the beginning of a transcript is scored like its rest"],
        ),
    ],
)
def test_arpa_files_of_other_programs_mean_what_they_say(change, warnings, tmp_path):
    path, noted = tmp_path / "a.arpa", []
    path.write_text(ARPA)
    plain = read_arpa(path, PIECES)
    path.write_text(change(ARPA))
    ngrams = read_arpa(path, PIECES, warn=noted.append)
    assert noted == [f"{path}: {warning}" for warning in warnings]
    automaton = ngram_automaton(ngrams, vocabulary_size=len(PIECES), weight=0.7)
    # A missing </s> costs nothing, and a missing <s> is no context.
    ngrams = {(END,): Entry(0.0)} | ngrams
    assert warnings or all(
        ngrams[ngram].log_probability == entry.log_probability for ngram, entry in plain.items()
    )
    for labels in [[], [3, 4, 4], [5, 5], [4, 4, 4, 3, 4], *TEXT]:
        expected = 0.7 * sentence_log_probability(ngrams, labels, 3)
        assert gain(automaton, labels) == pytest.approx(expected, abs=1e-4)


def test_a_piece_without_probability_is_never_a_gain(tmp_path):
    path = tmp_path / "a.arpa"
    path.write_text(ARPA.replace("-0.6 B -0.1", "-inf B -0.1").replace("-1.5 <unk>", "-99 <unk>"))
    tokenizer_path = tmp_path / "tokenizer.model"
    tokenizer = Tokenizer.train(["ABC B"], kind="char", vocabulary_size=0, path=tokenizer_path)
    b, c = tokenizer.encode("BC")
    added = load_language_model(path, tokenizer, order=2, weight=0.5)
    assert gain(added, [c, b]) < -200
    subtracted = load_language_model(path, tokenizer, order=2, weight=-0.5)
    gains = GAINS(subtracted, jnp.arange(len(subtracted.back_offs)))
    # The lowest probability in the file is 10^-0.9, the lowest back-offs are 10^-0.9 together.
    assert np.isfinite(gains).all() and gains.max() < 0.5 * 2 * math.log(10)


@pytest.mark.parametrize(
    "broken, wrong, line",
    [
        (lambda t: t.replace("ngram 2=4", "ngram 2=5"), "1 n-grams too few", 21),
        (lambda t: t.replace("ngram 2=4", "ngram 2 four"), "must be 'ngram N=COUNT'", 5),
        (lambda t: t.replace("\\2-grams:", "\\4-grams:"), "is not the next section", 15),
        (lambda t: t.replace("-0.9 B B", "-0.9 B DOG"), "'DOG': must be a piece", 18),
        (lambda t: t.replace("-0.9 B B", "-0.9 A B"), "listed twice", 18),
        (lambda t: t.replace("-0.9 B B", "-0.9 C B"), "prefix is not listed", 18),
        (lambda t: t.replace("-0.9 B B", "0.9 B B"), "log10 p at most 0", 18),
        (lambda t: t.replace("-0.9 B B", "-0.9 B"), "2 words", 18),
        (lambda t: t.replace("-0.9 B B", "nan B B"), "needs finite numbers", 18),
        (lambda t: t.replace("-0.3 A B -0.5", "-0.3 A B -inf"), "needs finite numbers", 17),
        (lambda t: t.replace("ngram 2=4", "ngram 2=3"), "1 n-grams too many", 21),
        (lambda t: t.replace("-0.9 B B", "much B B"), "'much'", 18),
        # IRSTLM's numbers mean something else, though the sections have the same names.
        (lambda t: "\niARPA\n" + t, "iARPA, IRSTLM's own format; convert", 2),
        (lambda t: t.replace("\\end\\", ""), "ends before", None),
        (lambda t: t.replace("\\data\\", ""), "has no \\\\data\\\\", None),
    ],
)
def test_invalid_arpa_file_is_reported_with_its_line(broken, wrong, line, tmp_path):
    path = tmp_path / "a.arpa"
    path.write_text(broken(ARPA))
    with pytest.raises(ValueError, match=wrong) as error:
        read_arpa(path, PIECES)
    assert str(error.value).startswith(f"{path}: line {line}: " if line else f"{path}: ")
    assert "\n" not in str(error.value)


def test_damaged_archive_is_reported(tmp_path):
    path = tmp_path / "a.arpa.gz"
    archive = bytearray(gzip.compress(ARPA.encode(), compresslevel=0))
    path.write_bytes(archive[:-8])
    with pytest.raises(ValueError, match="^.*a.arpa.gz: "):
        read_arpa(path, PIECES)
    archive[10] = 0xFF  # the first block's kind
    path.write_bytes(archive)
    with pytest.raises(ValueError, match="^.*a.arpa.gz: corrupt gzip"):
        read_arpa(path, PIECES)


def test_texts_are_estimated_and_other_files_are_rejected(tmp_path):
    tokenizer = Tokenizer.train(
        ["CAB BA", "ABC"], kind="char", vocabulary_size=0, path=tmp_path / "tokenizer.model"
    )
    text = tmp_path / "text.txt"
    text.write_text("CAB BA\n\nABC\n")
    read = load_language_model(text, tokenizer, order=3, weight=1.0)
    assert gain(read, tokenizer.encode("CAB")) > gain(read, tokenizer.encode("CCC"))
    text.write_text("\n \n")
    with pytest.raises(ValueError, match="text.txt: contains no text"):
        load_language_model(text, tokenizer, order=3, weight=1.0)
    warnings = []
    load = functools.partial(load_language_model, text, tokenizer, order=3, weight=1.0)
    text.write_text("CAB BA\ncab ba\n\nABC\nA▁B\n")
    some = load(warn=warnings.append)
    assert warnings == [
        f"{text}: 2 of 4 lines have characters that the model's tokenizer lacks: 'abc▁'; "
        "they are left out"
    ]
    assert gain(some, tokenizer.encode("CAB")) == gain(read, tokenizer.encode("CAB"))
    text.write_text("cab ba\n\nabc\n")
    with pytest.raises(ValueError, match="2 of 2 lines have .* tokenizer lacks: 'abc'$"):
        load()
    text.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\x00\xff\xfe")
    with pytest.raises(ValueError, match="for a KenLM binary"):
        load_language_model(text, tokenizer, order=3, weight=1.0)
    with pytest.raises(ValueError, match="nowhere.arpa: No such file"):
        load_language_model(tmp_path / "nowhere.arpa", tokenizer, order=3, weight=1.0)
