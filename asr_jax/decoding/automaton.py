"""Weighted automata over labels on the device, for n-gram language models and hotwords."""

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
    """A deterministic automaton with S states; each of V labels has a target and a gain in nats.

    State 0 has an arc for every label. Any other state has arcs for some labels and a back-off to a
    state nearer to 0: a label without an arc is looked up there, and the back-off's gain is added
    (Katz, 1987; Aho and Corasick, 1975, call it the failure transition). Memory is therefore
    proportional to the number of arcs, not to S x V.
    """

    root_targets: Int[Array, " V"]
    root_gains: Float[Array, " V"]
    first_arcs: Int[Array, " S1"]
    """Each state's first arc, then the number of arcs; S1 = S + 1. State 0 has none here."""
    arc_labels: Int[Array, " A"]
    arc_targets: Int[Array, " A"]
    arc_gains: Float[Array, " A"]
    back_offs: Int[Array, " S"]
    back_off_gains: Float[Array, " S"]
    end_gains: Float[Array, " S"]
    """Gain for ending in each state."""
    start_state: int = field(metadata=dict(static=True))
    most_arcs: int = field(metadata=dict(static=True))
    """Most arcs of any state but state 0."""
    most_back_offs: int = field(metadata=dict(static=True))
    """Most back-offs from any state to state 0."""

    def start(self, batch: int) -> Int[Array, " B"]:
        """Return the state before the first label, for every row."""
        return jnp.full((batch,), self.start_state, jnp.int32)

    def gains(self, states: Int[Array, " N"]) -> Float[Array, "N V"]:
        """Return the gain of every label from these states."""
        return self.arcs(states)[0]

    def step(self, states: Int[Array, " N"], labels: Int[Array, " N"]) -> Int[Array, " N"]:
        """Return the states that the labels lead to."""
        return jnp.take_along_axis(self.arcs(states)[1], labels[:, None], axis=1)[:, 0]

    def ends(self, states: Int[Array, " N"]) -> Float[Array, " N"]:
        """Return the gain for ending in these states."""
        return self.end_gains[states]

    def arcs(self, states: Int[Array, " N"]) -> tuple[Float[Array, "N V"], Int[Array, "N V"]]:
        """Return the gain and the target of every label.

        They start as the row of state 0. The arcs of each state on the back-off chain overwrite it,
        from the last back-off to the state itself; `most_arcs` arcs are read in one slice.
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
            # Arcs of later states get an index past the last label, which drops the write.
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
    """Build an automaton from Python lists.

    Args:
        arcs: {label: (target, gain)} of each state. A label without an arc from state 0 leads to
            state 0 with a gain of 0.
        back_offs: (target, gain) of each state's back-off; state 0 backs off to itself.
        end_gains: gain for ending in each state.
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
    """Return the largest number of back-offs from any state to state 0."""
    lengths = {0: 0}
    for state in range(len(back_offs)):
        chain = []
        while state not in lengths:
            chain.append(state)
            state = back_offs[state]
        for further, member in enumerate(reversed(chain), start=1):
            lengths[member] = lengths[state] + further
    return max(lengths.values())
