"""Hotword gains against counts of the phrases in a text, and the bound on them."""

import functools
import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.decoding.beam import beam_search
from asr_jax.decoding.fusion import Fusion
from asr_jax.decoding.hotwords import Hotwords, make_hotwords, read_hotwords
from asr_jax.models.joint import Scores
from asr_jax.models.transducer import Transducer
from asr_jax.text import Tokenizer

WORDS = ["A", "B", "AB", "BA", "ABA", "BB"]
PHRASES = {"A": 0.5, "A B": 1.0, "AB": 1.5, "ABA": 0.25, "B AB": 2.0, "BA B A": 1.0}


@pytest.fixture(scope="module", params=["char", "bpe"])
def tokenizer(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    texts = [
        " ".join(words) for words in itertools.product(["A", "B", "AB", "BA", "ABA"], repeat=2)
    ]
    return Tokenizer.train(texts, kind=request.param, vocabulary_size=10, path=path)


def boosts_of(hotwords, labels, room_of_label):
    """Return the sums of the boosts up to each label and to the end, and of their room."""
    boosts, ends = jax.jit(Hotwords.boosts), jax.jit(Hotwords.ends)
    state, total, room = hotwords.start(1), 0.0, 0.0
    vocabulary_size = len(hotwords.automaton.root_targets)
    totals, rooms = [], []
    for label in labels:
        room_here = room_of_label()
        gains, after = boosts(hotwords, state, jnp.full((1, vocabulary_size), room_here))
        state = jax.tree.map(lambda leaf: leaf[:, label], after)
        total, room = total + float(gains[0, label]), room + room_here
        totals.append(total)
        rooms.append(room)
    return [*totals, total + float(ends(hotwords, state)[0])], [*rooms, room]


def test_text_gains_the_boosts_of_the_phrases_in_it(tokenizer):
    hotwords = make_hotwords(PHRASES, tokenizer)
    generator = random.Random(0)
    some = 0
    for _ in range(60):
        words = generator.choices(WORDS, k=generator.randint(0, 6))
        expected = 0.0
        for phrase, boost in PHRASES.items():
            parts = phrase.split()
            starts = range(len(words) - len(parts) + 1)
            times = sum(words[i : i + len(parts)] == parts for i in starts)
            expected += times * boost * len(tokenizer.encode(phrase))
        # The model doubts every label more than any boost.
        totals, _ = boosts_of(hotwords, tokenizer.encode(" ".join(words)), lambda: 1000.0)
        assert totals[-1] == pytest.approx(expected, abs=1e-3), words
        some += expected > 0
    assert some > 20


@pytest.mark.parametrize("factor", [1, 50])
def test_text_never_gains_more_than_the_room_of_its_labels(tokenizer, factor):
    boosts = {phrase: factor * boost for phrase, boost in PHRASES.items()}
    hotwords = make_hotwords(boosts, tokenizer)
    generator = random.Random(1)
    gained = 0.0
    for _ in range(60):
        words = generator.choices(WORDS, k=generator.randint(0, 6))
        draw = lambda: generator.choice([-1.0, 0.0, 0.2, 3.0])
        room = lambda: max(0.0, draw())
        totals, rooms = boosts_of(hotwords, tokenizer.encode(" ".join(words)), room)
        assert all(-1e-3 <= total <= most + 1e-3 for total, most in zip(totals, rooms))
        gained += totals[-1]
        without, _ = boosts_of(hotwords, tokenizer.encode(" ".join(words)), lambda: -1.0)
        assert without == pytest.approx([0] * len(without), abs=1e-3)
    assert gained > 20


def test_labels_of_a_phrase_gain_before_it_is_complete(tokenizer):
    hotwords = make_hotwords({"ABA B": 1.0}, tokenizer)
    label, *_ = tokenizer.encode("ABA B")
    totals, _ = boosts_of(hotwords, [label], lambda: 5.0)
    assert totals == pytest.approx([1.0, 0.0])  # The end gives it back.


class Counted(Transducer):
    """A model that has learned when the labels come: frame t is for label n(t) and those after it.

    Encoded frames hold log-probabilities [V], then n(t). They are those of the next symbol until
    n(t) + 1 labels have been emitted; from then on a blank is nearly certain.
    """

    def __init__(self, vocabulary_size):
        self.size = vocabulary_size
        self.predictor = self.joint = self

    def start(self, batch):
        return jnp.zeros(batch)

    def step(self, counts, labels):
        return counts + 1

    def output(self, counts):
        return jnp.repeat(counts[:, None], self.size + 1, axis=1)

    def encoder_projection(self, frames):
        return frames

    def predictor_projection(self, counts):
        return counts

    def scores(self, encoded, counts):
        label, silence = encoded[..., : self.size], jnp.log(jnp.array(silent(self.size)))
        emitted = counts[..., :1] > encoded[..., -1:]
        return Scores(jnp.where(emitted, silence, label), jnp.zeros((*label.shape[:-1], 0)))


def silent(vocabulary_size):
    """Return the probabilities of symbols where nothing is spoken."""
    return np.array([1 - 1e-4 * (vocabulary_size - 1)] + [1e-4] * (vocabulary_size - 1))


def frames_of(spoken, vocabulary_size):
    """Return 40 frames: every label of `spoken` has one, and two of silence follow it."""
    rows = np.tile(np.append(np.log(silent(vocabulary_size)), 0), (40, 1))
    for number, alternatives in enumerate(spoken):
        row = np.full(vocabulary_size, 1e-3)
        row[list(alternatives)] = list(alternatives.values())
        rows[3 * number, :-1] = np.log(row / row.sum())
        rows[3 * number :, -1] = number
    return rows


def test_no_boost_lengthens_a_text_and_a_spoken_phrase_is_found(tokenizer):
    size = tokenizer.vocabulary_size
    clear = [{label: 0.99} for label in tokenizer.encode("AB BA AB")]
    heard, meant = tokenizer.encode("AB A AB"), tokenizer.encode("AB B AB")
    # The model prefers another word a little where the phrase B AB is spoken.
    unclear = [{a: 0.5, b: 0.4} if a != b else {a: 0.9} for a, b in zip(heard, meant)]
    frames = jnp.array(np.stack([frames_of(row, size) for row in (clear, [], unclear)]), "float32")
    options = dict(size=4, max_symbols_per_frame=2)
    compiled = jax.jit(functools.partial(beam_search, Counted(size), **options))

    def search(hotwords):
        return compiled(frames, jnp.full(3, 40), fusion=Fusion(hotwords=hotwords))

    def texts(found):
        rows = zip(found.labels[:, 0], found.counts[:, 0])
        return [tokenizer.decode(row[:count]) for row, count in rows]

    without = search(None)
    assert texts(without) == ["AB BA AB", "", "AB A AB"]
    for boost, phrase in itertools.product((0.5, 1.0, 3.0, 10.0, 100.0), ("B AB", "BB A")):
        found = search(make_hotwords({phrase: boost}, tokenizer))
        assert (found.counts[:, 0] <= without.counts[:, 0]).all()
        # Boosts move probability from label to label: a sum over alignments is at most one.
        assert (found.scores <= 1e-4).all()
        if phrase == "B AB":
            assert phrase in texts(found)[2]
        if boost <= 1:  # Higher boosts replace similar words.
            assert texts(found) == ["AB BA AB", "", "AB B AB" if phrase == "B AB" else "AB A AB"]


def test_hotwords_file_and_its_errors(tokenizer, tmp_path):
    path = tmp_path / "hotwords.txt"
    path.write_text("A  B\n\nBA :2.5\nAB\t:3  \nA:30\nA: 30\nB:2 A :1\n")
    assert read_hotwords(path, boost=1.5) == {
        **{"A B": 1.5, "BA": 2.5, "AB": 3.0, "A:30": 1.5, "A: 30": 1.5, "B:2 A": 1.0}
    }
    for text, wrong in [
        ("A\nB :-1\n", "line 2: 'B :-1': must be PHRASE"),
        ("A :much\n", "line 1"),
        (":2\n", "line 1"),
        (" :2\n", "line 1"),
        ("A :\n", "line 1"),
        ("A :100.5\n", "with a boost above 0, up to 100"),
        ("A :inf\n", "line 1"),
        ("A :0\n", "line 1"),
        ("A B\nBA\nA  B :2\n", "line 3: 'A B': is listed twice"),
        ("\n", "contains no phrase"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=wrong):
            read_hotwords(path, boost=1.5)
    with pytest.raises(ValueError, match="hotword 'A CAT': the model's tokenizer lacks 'CT'"):
        make_hotwords({"A CAT": 1.0}, tokenizer)
    with pytest.raises(ValueError, match="hotword 'A:3': .* lacks '3:'; a boost follows white sp"):
        make_hotwords({"A:3": 1.0}, tokenizer)
