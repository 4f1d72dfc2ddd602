"""Phrases that are more likely than the model knows, as an automaton (Aho and Corasick, 1975)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from asr_jax.decoding.automaton import Automaton, build_automaton
from asr_jax.text import SPACE_PIECE, Tokenizer, collapse_white_space


def read_hotwords(path: Path, *, boost: float) -> dict[str, float]:
    """{phrase: boost} of a file with a phrase a line, its own boost behind a colon: `ANNA :2.5`.

    Raises ValueError for what cannot be read, by its line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    phrases: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        phrase, colon, own = line.rpartition(":")
        if not colon:
            phrase, own = line, str(boost)
        phrase = collapse_white_space(phrase)
        try:
            of_phrase = float(own)
        except ValueError:
            of_phrase = math.nan
        if not line.strip():
            continue
        if not phrase or not 0 < of_phrase < math.inf:
            rule = "must be a phrase, or PHRASE :BOOST with a boost above 0"
            raise ValueError(f"{path}: line {number}: {line!r}: {rule}")
        if phrase in phrases:
            raise ValueError(f"{path}: line {number}: {phrase!r}: is there already, name it once")
        phrases[phrase] = of_phrase
    if not phrases:
        raise ValueError(f"{path}: holds no phrase")
    return phrases


def hotword_automaton(phrases: Mapping[str, float], tokenizer: Tokenizer) -> Automaton:
    """Every time that a phrase is said, as whole words, it gains its boost, in nats, per label.

    While its labels come each brings its boost in advance, and what no phrase comes of is taken
    back: the gains of a whole sequence are those of the phrases in it, and of phrases within
    phrases too. Raises ValueError for a phrase that the tokenizer cannot write.
    """
    trie = _phrase_trie(phrases, tokenizer)
    back_offs = _link_back_offs(trie)
    children, advances, wholes = trie
    # A phrase is whole when the next word begins: only there, or at the end, it is paid.
    begins = [n for n, piece in enumerate(tokenizer.pieces) if piece.startswith(SPACE_PIECE)]
    arcs: list[dict[int, tuple[int, float]]] = []
    for state, own in enumerate(children):
        after = {label: (to, advances[to] - advances[state]) for label, to in own.items()}
        for label in begins if wholes[state] else ():
            to = _next_state(state, label, children, back_offs)
            after[label] = (to, advances[to] - advances[state] + wholes[state])
        arcs.append(after)
    start = 0
    for label in tokenizer.separator:
        start = children[0][label]
    return build_automaton(
        arcs,
        [(back, advances[back] - advances[state]) for state, back in enumerate(back_offs)],
        [whole - advance for whole, advance in zip(wholes, advances)],
        start_state=start,
        vocabulary_size=tokenizer.vocabulary_size,
    )


class Trie(NamedTuple):
    """The beginnings of all phrases, a state each; state 0 is the empty one."""

    children: list[dict[int, int]]
    """{label: state} of each state."""
    advances: list[float]
    """Boost that the labels so far have earned in advance."""
    wholes: list[float]
    """Boost of the phrases that are whole in each state."""


def _phrase_trie(phrases: Mapping[str, float], tokenizer: Tokenizer) -> Trie:
    trie = Trie([{}], [0.0], [0.0])
    children, advances, wholes = trie
    for phrase, boost in phrases.items():
        if unknown := tokenizer.unknown_characters(phrase):
            raise ValueError(f"hotword {phrase!r}: the model's tokenizer has no {unknown!r}")
        state, labels = 0, tokenizer.encode(phrase)
        for number, label in enumerate(tokenizer.separator + labels, start=1):
            if label not in children[state]:
                children[state][label] = len(children)
                children.append({})
                advances.append(0.0)
                wholes.append(0.0)
            state = children[state][label]
            count = number - len(tokenizer.separator)
            advances[state] = max(advances[state], boost * count)
        wholes[state] = boost * len(labels)
    return trie


def _link_back_offs(trie: Trie) -> list[int]:
    """Return each state's longest proper suffix that is a state; add the phrases whole in it."""
    back_offs = [0] * len(trie.children)
    waiting = list(trie.children[0].values())
    for state in waiting:  # grows: breadth first, so that shorter ones are ready
        for label, child in trie.children[state].items():
            back_offs[child] = _next_state(back_offs[state], label, trie.children, back_offs)
            waiting.append(child)
        trie.wholes[state] += trie.wholes[back_offs[state]]
    return back_offs


def _next_state(
    state: int, label: int, children: list[dict[int, int]], back_offs: list[int]
) -> int:
    """The longest beginning of a phrase that ends with `label`, after `state`'s."""
    while state and label not in children[state]:
        state = back_offs[state]
    return children[state].get(label, 0)
