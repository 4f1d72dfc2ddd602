"""Hotwords: phrases that a beam search boosts, as an automaton (Aho and Corasick, 1975)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from asr_jax.decoding.automaton import Automaton, build_automaton
from asr_jax.text import SPACE_PIECE, Tokenizer
from asr_jax.text_files import numbered_lines, transcript


def read_hotwords(path: Path, *, boost: float) -> dict[str, float]:
    """Read {phrase: boost} from a file with one phrase per line; `ANNA :2.5` overrides `boost`.

    Raises ValueError for a file that cannot be read, and for an invalid line, with its number.
    """
    phrases: dict[str, float] = {}
    for number, line in numbered_lines(path):
        phrase, colon, own = line.rpartition(":")
        if not colon:
            phrase, own = line, str(boost)
        phrase = transcript(phrase)
        try:
            phrase_boost = float(own)
        except ValueError:
            phrase_boost = math.nan
        if not phrase or not 0 < phrase_boost < math.inf:
            rule = "must be PHRASE, or PHRASE :BOOST with a positive boost"
            raise ValueError(f"{path}: line {number}: {line!r}: {rule}")
        if phrase in phrases:
            raise ValueError(f"{path}: line {number}: {phrase!r}: is listed twice")
        phrases[phrase] = phrase_boost
    if not phrases:
        raise ValueError(f"{path}: contains no phrase")
    return phrases


def hotword_automaton(phrases: Mapping[str, float], tokenizer: Tokenizer) -> Automaton:
    """Build an automaton that adds a phrase's boost, in nats per label, to each occurrence.

    Occurrences are whole words. Each matched label earns its boost immediately; a match that fails
    to complete gives it back. The gain of a complete sequence is thus the sum over the phrases in
    it, including phrases within phrases. Raises ValueError for a phrase with characters outside the
    tokenizer.
    """
    trie = _phrase_trie(phrases, tokenizer)
    back_offs = _link_back_offs(trie)
    children, advances, completed = trie
    # A phrase is complete, and its boost final, when the next word begins or the sequence ends.
    begins = [n for n, piece in enumerate(tokenizer.pieces) if piece.startswith(SPACE_PIECE)]
    arcs: list[dict[int, tuple[int, float]]] = []
    for state, own in enumerate(children):
        after = {label: (to, advances[to] - advances[state]) for label, to in own.items()}
        for label in begins if completed[state] else ():
            to = _next_state(state, label, children, back_offs)
            after[label] = (to, advances[to] - advances[state] + completed[state])
        arcs.append(after)
    start = 0
    for label in tokenizer.separator:
        start = children[0][label]
    return build_automaton(
        arcs,
        [(back, advances[back] - advances[state]) for state, back in enumerate(back_offs)],
        [boost - advance for boost, advance in zip(completed, advances)],
        start_state=start,
        vocabulary_size=tokenizer.vocabulary_size,
    )


class Trie(NamedTuple):
    """A state for every prefix of a phrase; state 0 is the empty prefix."""

    children: list[dict[int, int]]
    """{label: next state} of each state."""
    advances: list[float]
    """Boost that the labels so far have earned."""
    completed: list[float]
    """Boost of the phrases that are complete in each state."""


def _phrase_trie(phrases: Mapping[str, float], tokenizer: Tokenizer) -> Trie:
    trie = Trie([{}], [0.0], [0.0])
    children, advances, completed = trie
    for phrase, boost in phrases.items():
        if unknown := tokenizer.unknown_characters(phrase):
            raise ValueError(f"hotword {phrase!r}: the model's tokenizer lacks {unknown!r}")
        state, labels = 0, tokenizer.encode(phrase)
        for number, label in enumerate(tokenizer.separator + labels, start=1):
            if label not in children[state]:
                children[state][label] = len(children)
                children.append({})
                advances.append(0.0)
                completed.append(0.0)
            state = children[state][label]
            count = number - len(tokenizer.separator)
            advances[state] = max(advances[state], boost * count)
        completed[state] = boost * len(labels)
    return trie


def _link_back_offs(trie: Trie) -> list[int]:
    """Return each state's longest proper suffix that is a state, adding that state's phrases."""
    back_offs = [0] * len(trie.children)
    waiting = list(trie.children[0].values())
    for state in waiting:  # Grows. Breadth first: the suffix of a state is ready before it.
        for label, child in trie.children[state].items():
            back_offs[child] = _next_state(back_offs[state], label, trie.children, back_offs)
            waiting.append(child)
        trie.completed[state] += trie.completed[back_offs[state]]
    return back_offs


def _next_state(
    state: int, label: int, children: list[dict[int, int]], back_offs: list[int]
) -> int:
    """Return the state of the longest phrase prefix that ends `state` followed by `label`."""
    while state and label not in children[state]:
        state = back_offs[state]
    return children[state].get(label, 0)
