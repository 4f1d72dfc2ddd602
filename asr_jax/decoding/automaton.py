"""Weighted automata over labels, on the device: n-gram language models and hotwords are such."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Automaton:
    """S states, from each of which every one of V labels leads somewhere, with a gain in nats.

    State 0 has all V arcs. Another state has some, and an arc without a label to a state nearer to
    0, its back-off: a label that it has no arc for is looked up there, and the back-off's gain is
    added (Katz, 1987; Aho and Corasick, 1975, call it the failure transition). So an automaton
    takes the room of its arcs, not of S x V.
    """

    root_targets: Int[Array, " V"]
    root_gains: Float[Array, " V"]
    first_arcs: Int[Array, " S1"]
    """Where a state's arcs begin among all, and the end of all; none are of state 0. S1 = S + 1."""
    arc_labels: Int[Array, " A"]
    arc_targets: Int[Array, " A"]
    arc_gains: Float[Array, " A"]
    back_offs: Int[Array, " S"]
    back_off_gains: Float[Array, " S"]
    end_gains: Float[Array, " S"]
    """Of ending there."""
    start_state: int = field(metadata=dict(static=True))
    most_arcs: int = field(metadata=dict(static=True))
    """That a state has besides state 0."""
    most_back_offs: int = field(metadata=dict(static=True))
    """From any state to state 0."""

    def start(self, batch: int) -> Int[Array, " B"]:
        """The state before the first label, for each of a batch."""
        return jnp.full((batch,), self.start_state, jnp.int32)

    def gains(self, states: Int[Array, " N"]) -> Float[Array, "N V"]:
        """Of every label, from these states."""
        return self._arcs(states)[0]

    def step(self, states: Int[Array, " N"], labels: Int[Array, " N"]) -> Int[Array, " N"]:
        """Where the labels lead."""
        return jnp.take_along_axis(self._arcs(states)[1], labels[:, None], axis=1)[:, 0]

    def ends(self, states: Int[Array, " N"]) -> Float[Array, " N"]:
        return self.end_gains[states]

    def _arcs(self, states: Int[Array, " N"]) -> tuple[Float[Array, "N V"], Int[Array, "N V"]]:
        """Gain and target of every label.

        The row of state 0, over which the states' own arcs are written, from the last back-off to
        the state itself: as many as `most_arcs` are read of each, in one piece.
        """
        chain = [(states, jnp.zeros(states.shape))]
        for _ in range(self.most_back_offs):
            state, gain = chain[-1]
            chain.append((self.back_offs[state], gain + self.back_off_gains[state]))
        rows = jnp.arange(len(states))[:, None]
        gains = self.root_gains + chain[-1][1][:, None]
        targets = jnp.broadcast_to(self.root_targets, gains.shape)
        for state, gain in reversed(chain[:-1]):
            first, end = self.first_arcs[state], self.first_arcs[state + 1]
            arcs = first[:, None] + jnp.arange(self.most_arcs)
            # Beyond the last label: nothing is written.
            labels = jnp.where(arcs < end[:, None], self.arc_labels[arcs], gains.shape[1])
            gains = gains.at[rows, labels].set(
                self.arc_gains[arcs] + gain[:, None], mode="drop", unique_indices=False
            )
            targets = targets.at[rows, labels].set(self.arc_targets[arcs], mode="drop")
        return gains, targets


def build_automaton(
    arcs: Sequence[Mapping[int, tuple[int, float]]],
    back_offs: Sequence[tuple[int, float]],
    end_gains: Sequence[float],
    *,
    start_state: int,
    vocabulary_size: int,
) -> Automaton:
    """Of each state's {label: (target, gain)}, and its back-off with that one's gain.

    State 0 backs off to itself; a label it has no arc for leads to itself, with a gain of 0.
    """
    root = [arcs[0].get(label, (0, 0.0)) for label in range(vocabulary_size)]
    counts = [0, *(len(of_state) for of_state in arcs[1:])]
    flat = [(label, *of_state[label]) for of_state in arcs[1:] for label in sorted(of_state)]
    labels, targets, gains = zip(*flat) if flat else ((0,), (0,), (0.0,))
    integers = functools.partial(jnp.asarray, dtype=jnp.int32)
    floats = functools.partial(jnp.asarray, dtype=jnp.float32)
    return Automaton(
        root_targets=integers([target for target, _ in root]),
        root_gains=floats([gain for _, gain in root]),
        first_arcs=integers(np.concatenate([[0], np.cumsum(counts)])),
        arc_labels=integers(labels),
        arc_targets=integers(targets),
        arc_gains=floats(gains),
        back_offs=integers([state for state, _ in back_offs]),
        back_off_gains=floats([gain for _, gain in back_offs]),
        end_gains=floats(end_gains),
        start_state=start_state,
        most_arcs=max(counts),
        most_back_offs=_longest_chain([state for state, _ in back_offs]),
    )


def _longest_chain(back_offs: Sequence[int]) -> int:
    """Return the most back-offs from any state to state 0."""
    lengths = {0: 0}
    for state in range(len(back_offs)):
        chain = []
        while state not in lengths:
            chain.append(state)
            state = back_offs[state]
        for further, member in enumerate(reversed(chain), start=1):
            lengths[member] = lengths[state] + further
    return max(lengths.values())
