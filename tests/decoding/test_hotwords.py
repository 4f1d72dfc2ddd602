"""Hotword gains against counts of the phrases in a text."""

import itertools
import random

import jax
import jax.numpy as jnp
import pytest

from asr_jax.decoding.automaton import Automaton
from asr_jax.decoding.hotwords import hotword_automaton, read_hotwords
from asr_jax.text import Tokenizer

PHRASES = {"A": 0.5, "A B": 1.0, "AB": 1.5, "ABA": 0.25, "B AB": 2.0, "BA B A": 1.0}


@pytest.fixture(scope="module", params=["char", "bpe"])
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    texts = [
        " ".join(words) for words in itertools.product(["A", "B", "AB", "BA", "ABA"], repeat=2)
    ]
    return Tokenizer.train(texts, kind=request.param, vocabulary_size=10, path=path)


def test_text_gains_the_boosts_of_the_phrases_in_it(tokenizer):
    automaton = hotword_automaton(PHRASES, tokenizer)
    gains, step = jax.jit(Automaton.gains), jax.jit(Automaton.step)
    generator = random.Random(0)
    some = 0
    for _ in range(60):
        words = generator.choices(["A", "B", "AB", "BA", "ABA", "BB"], k=generator.randint(0, 6))
        expected = 0.0
        for phrase, boost in PHRASES.items():
            parts = phrase.split()
            starts = range(len(words) - len(parts) + 1)
            times = sum(words[i : i + len(parts)] == parts for i in starts)
            expected += times * boost * len(tokenizer.encode(phrase))
        states, total = automaton.start(1), 0.0
        for label in tokenizer.encode(" ".join(words)):
            total += float(gains(automaton, states)[0, label])
            states = step(automaton, states, jnp.array([label]))
        total += float(automaton.ends(states)[0])
        assert total == pytest.approx(expected, abs=1e-4), words
        some += expected > 0
    assert some > 20


def test_labels_of_a_phrase_gain_before_it_is_complete(tokenizer):
    automaton = hotword_automaton({"ABA B": 1.0}, tokenizer)
    states = automaton.start(1)
    label, *_ = tokenizer.encode("ABA B")
    assert float(automaton.gains(states)[0, label]) == pytest.approx(1.0)


def test_hotwords_file_and_its_errors(tokenizer, tmp_path):
    path = tmp_path / "hotwords.txt"
    path.write_text("A  B\n\nBA :2.5\n")
    assert read_hotwords(path, boost=1.5) == {"A B": 1.5, "BA": 2.5}
    for text, wrong in [
        ("A\nB :-1\n", "line 2: 'B :-1': must be PHRASE"),
        ("A :much\n", "line 1"),
        (":2\n", "line 1"),
        ("A B\nBA\nA  B :2\n", "line 3: 'A B': is listed twice"),
        ("\n", "contains no phrase"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=wrong):
            read_hotwords(path, boost=1.5)
    with pytest.raises(ValueError, match="hotword 'A CAT': the model's tokenizer lacks 'CT'"):
        hotword_automaton({"A CAT": 1.0}, tokenizer)
