"""Hotwords: phrases that a beam search boosts, as an automaton (Aho and Corasick, 1975)."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from asr_jax.decoding.automaton import Automaton, build_automaton
from asr_jax.text import SPACE_PIECE, Tokenizer
from asr_jax.text_files import numbered_lines, transcript

# In nats per label. No model doubts a label that much, and float32 holds sums of such boosts.
LARGEST_BOOST = 100.0
# Phrases to boost, each alone or with its boost.
Phrases = Iterable[str | tuple[str, int | float]] | Mapping[str, int | float]


def read_hotwords(path: Path, *, boost: float) -> dict[str, float]:
    """Read {phrase: boost} from a file with one phrase per line; `ANNA :2.5` overrides `boost`.

    A colon without white space before it is part of the phrase.

    Raises ValueError for a file that cannot be read, and for an invalid line, with its number.
    """
    phrases: dict[str, float] = {}
    for number, line in numbered_lines(path):
        phrase, own = line, str(boost)
        if has_own := re.fullmatch(r"(|.*\s):(\S*)\s*", line):
            phrase, own = has_own.groups()
        phrase = transcript(phrase)
        try:
            phrase_boost = float(own)
        except ValueError:
            phrase_boost = math.nan
        if not phrase or not 0 < phrase_boost <= LARGEST_BOOST:
            rule = f"must be PHRASE, or PHRASE :BOOST with a boost above 0, up to {LARGEST_BOOST:g}"
            raise ValueError(f"{path}: line {number}: {line!r}: {rule}")
        if phrase in phrases:
            raise ValueError(f"{path}: line {number}: {phrase!r}: is listed twice")
        phrases[phrase] = phrase_boost
    if not phrases:
        raise ValueError(f"{path}: contains no phrase")
    return phrases


def boosted(hotwords: Phrases, *, boost: object) -> dict[str, float]:
    """Return {phrase: boost}; a phrase without a boost of its own gets `boost`.

    Raises ValueError for what is neither a phrase nor a pair.
    """
    phrases = {}
    listed = hotwords.items() if isinstance(hotwords, Mapping) else hotwords
    for number, given in enumerate(listed):
        phrase, own = given if isinstance(given, tuple) and len(given) == 2 else (given, boost)
        name = f"hotwords[{number}] = {given!r}"
        if not isinstance(phrase, str) or not (phrase := transcript(phrase)):
            raise ValueError(f"{name}: must be a phrase, or a phrase and its boost")
        if not isinstance(own, int | float) or not 0 < own <= LARGEST_BOOST:
            raise ValueError(f"{name}: its boost must be above 0, up to {LARGEST_BOOST:g}")
        if phrase in phrases:
            raise ValueError(f"{name}: is listed twice")
        phrases[phrase] = float(own)
    if not phrases:
        raise ValueError("hotwords: must hold a phrase")
    return phrases


class BoostState(NamedTuple):
    """The hotwords that N label sequences have matched so far."""

    states: Int[Array, " N"]
    """States of the automaton."""
    room: Float[Array, " N"]
    """Most boost, in nats, that the match may have earned."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hotwords:
    """Phrases to boost, and a bound on their boosts.

    Without a bound, a boost above the doubt of the model pays for labels that nobody spoke, at any
    frame and without end. Therefore a boost may move probability from label to label, but not from
    the blank to labels: each label of a match has *room*, the nats by which its score falls short
    of log(1 - P(blank)), and a match earns its boost or its room, whichever is less. A sequence
    thus scores at most as much as the model gives to its alignments of blanks and labels of any
    kind.
    """

    automaton: Automaton
    """Gains without a bound."""
    advances: Float[Array, " S"]
    """Boost that the labels of a match so far earn without a bound, for each state."""

    def start(self, batch: int) -> BoostState:
        """Return the state before the first label, for every row."""
        return BoostState(self.automaton.start(batch), jnp.zeros(batch))

    def boosts(
        self, before: BoostState, room: Float[Array, "N V"]
    ) -> tuple[Float[Array, "N V"], BoostState]:
        """Return the boost of every next label, and the states after it, with axes N, V.

        Args:
            before: states before the label.
            room: room of the label; below 0 counts as 0.
        """
        gains, targets = self.automaton.arcs(before.states)
        advance, room_before = self.advances[before.states][:, None], before.room[:, None]
        next_advance = self.advances[targets]
        # What the phrases that this label completes keep; the rest is earned again or given back.
        kept = jnp.clip(gains + advance - next_advance, 0, room_before)
        continued = jnp.where(next_advance > 0, room_before - kept, 0)
        room_after = jnp.where(targets > 0, continued + jnp.maximum(room, 0), 0)
        earned = jnp.minimum(advance, room_before)
        boosts = kept + jnp.minimum(next_advance, room_after) - earned
        return boosts, BoostState(targets, room_after)

    def ends(self, at: BoostState) -> Float[Array, " N"]:
        """Return the boost for ending in these states."""
        advance = self.advances[at.states]
        completed = jnp.clip(self.automaton.ends(at.states) + advance, 0, at.room)
        return completed - jnp.minimum(advance, at.room)


def make_hotwords(phrases: Mapping[str, float], tokenizer: Tokenizer) -> Hotwords:
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
    automaton = build_automaton(
        arcs,
        [(back, advances[back] - advances[state]) for state, back in enumerate(back_offs)],
        [boost - advance for boost, advance in zip(completed, advances)],
        start_state=start,
        vocabulary_size=tokenizer.vocabulary_size,
    )
    return Hotwords(automaton, jnp.array(advances, jnp.float32))


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
            hint = "; a boost follows white space, as in ANNA :2.5" if ":" in unknown else ""
            raise ValueError(f"hotword {phrase!r}: the model's tokenizer lacks {unknown!r}{hint}")
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
