"""The transducer losses written out in NumPy, float64, one utterance and one cell at a time.

Slow and plain on purpose: tests compare the other implementations with it.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def loss_and_gradient(
    logits: np.ndarray, labels: np.ndarray, blank_id: int = 0
) -> tuple[float, np.ndarray]:
    """Return the loss of one utterance's logits [T, U+1, V] without padding, and its gradient.

    alpha, beta: log-probabilities of reaching cell (t, u), and of finishing from it (Graves 2012,
    equations 16 to 18). The gradient is the softmax times the cell's occupancy, minus each edge's
    occupancy at its symbol (equation 20 and the softmax's derivative).
    """
    log_probs = log_softmax(logits)
    frames, cells, vocabulary = log_probs.shape
    alpha = np.full((frames, cells), -np.inf)
    beta = np.full((frames + 1, cells + 1), -np.inf)
    for t, u in np.ndindex(frames, cells):
        if t == u == 0:
            alpha[t, u] = 0.0
        if t > 0:
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t - 1, u] + log_probs[t - 1, u, blank_id])
        if u > 0:
            label = log_probs[t, u - 1, labels[u - 1]]
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t, u - 1] + label)
    beta[frames, cells - 1] = 0.0
    for t in reversed(range(frames)):
        for u in reversed(range(cells)):
            beta[t, u] = beta[t + 1, u] + log_probs[t, u, blank_id]
            if u < cells - 1:
                beta[t, u] = np.logaddexp(beta[t, u], beta[t, u + 1] + log_probs[t, u, labels[u]])
    total = beta[0, 0]
    gradient = np.zeros((frames, cells, vocabulary))
    for t, u in np.ndindex(frames, cells):
        gradient[t, u] += np.exp(log_probs[t, u] + alpha[t, u] + beta[t, u] - total)
        blank = log_probs[t, u, blank_id] + beta[t + 1, u]
        gradient[t, u, blank_id] -= np.exp(alpha[t, u] + blank - total)
        if u < cells - 1:
            label = log_probs[t, u, labels[u]] + beta[t, u + 1]
            gradient[t, u, labels[u]] -= np.exp(alpha[t, u] + label - total)
    return -total, gradient


class Edge(NamedTuple):
    """An edge from node (t, u): a label or a blank, and the frames that it takes."""

    t: int
    u: int
    is_label: bool
    frames: int


class Objective(NamedTuple):
    """The lattice's edges and their probabilities; see `transducer_loss` and `tdt_loss`."""

    blank_id: int = 0
    topology: str = "rnnt"
    factorization: str = "softmax"
    durations: tuple[int, ...] = ()
    sigma: float = 0.0

    def edges(self, t: int, u: int, frames: int, labels: int) -> Iterator[Edge]:
        """Yield the edges that leave node (t, u) of a lattice that ends in (frames, labels)."""
        label_takes_all = self.topology == "one_symbol_per_frame"
        for d in self.durations or (1,):
            if 0 < d <= frames - t:
                yield Edge(t, u, False, d)
        for d in self.durations or (int(label_takes_all),):
            if u < labels and (t + d < frames or (t + d == frames and label_takes_all)):
                yield Edge(t, u, True, d)

    def alignments(self, frames: int, labels: int) -> Iterator[list[Edge]]:
        """Return all paths from (0, 0) to (frames, labels)."""

        def paths_from(t, u):
            if (t, u) == (frames, labels):
                yield []
            elif t < frames:
                for edge in self.edges(t, u, frames, labels):
                    for rest in paths_from(t + edge.frames, u + edge.is_label):
                        yield [edge, *rest]

        return paths_from(0, 0)

    def log_probability(self, logits: np.ndarray, labels: np.ndarray, edge: Edge) -> float:
        """Return an edge's log-probability from all logits [T, U+1, V] of the utterance."""
        cell = np.asarray(logits[edge.t, edge.u], np.float64)
        symbols, durations = np.split(cell, [len(cell) - len(self.durations)])
        symbol = labels[edge.u] if edge.is_label else self.blank_id
        if self.factorization == "softmax":
            score = log_softmax(symbols)[symbol]
        elif edge.is_label:
            others = np.delete(symbols, self.blank_id)
            score = log_softmax(others)[symbol - (symbol > self.blank_id)]
            score -= np.logaddexp(0.0, symbols[self.blank_id])
        else:
            score = -np.logaddexp(0.0, -symbols[self.blank_id])
        if self.durations:
            score += log_softmax(durations)[self.durations.index(edge.frames)]
        return score - self.sigma

    def loss(self, logits: np.ndarray, labels: np.ndarray) -> float:
        """Return -log of the summed probability of all alignments, by recursion over nodes."""
        frames, cells = logits.shape[:2]

        @cache
        def total(t, u):
            if t == frames:
                return 0.0 if u == cells - 1 else -np.inf
            scores = [
                self.log_probability(logits, labels, e) + total(t + e.frames, u + e.is_label)
                for e in self.edges(t, u, frames, cells - 1)
            ]
            return np.logaddexp.reduce(scores) if scores else -np.inf

        return -total(0, 0)

    def scored_alignments(
        self, logits: np.ndarray, labels: np.ndarray
    ) -> list[tuple[float, list[Edge]]]:
        """Return (log-probability, edges) of every alignment: the definition, for tiny lattices."""
        frames, cells = logits.shape[:2]
        return [
            (sum(self.log_probability(logits, labels, edge) for edge in path), path)
            for path in self.alignments(frames, cells - 1)
        ]


def enumerated_loss(logits: np.ndarray, labels: np.ndarray, blank_id: int = 0) -> float:
    """Return the loss by its definition, a sum over all alignments, each ending in a blank."""
    scored = Objective(blank_id).scored_alignments(np.asarray(logits), labels)
    return -float(np.logaddexp.reduce([score for score, _ in scored]))


def joint_logits(encoded, predicted, kernel, bias, activation: str = "tanh") -> np.ndarray:
    """Return logits [T, U+1, V] of one utterance's encoded [T, D] and predicted [U+1, D]."""
    total = np.asarray(encoded, np.float64)[:, None] + np.asarray(predicted, np.float64)
    return (np.tanh(total) if activation == "tanh" else np.maximum(total, 0.0)) @ kernel + bias


def joint_loss_and_gradients(
    encoded: np.ndarray,
    predicted: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    labels: np.ndarray,
    blank_id: int = 0,
    activation: str = "tanh",
) -> tuple[float, tuple[np.ndarray, ...]]:
    """Return the loss of one utterance's [T, D] and [U+1, D], and all four gradients."""
    encoded, predicted, kernel, bias = (
        np.asarray(x, np.float64) for x in (encoded, predicted, kernel, bias)
    )
    total = encoded[:, None] + predicted[None]
    hidden = np.tanh(total) if activation == "tanh" else np.maximum(total, 0.0)
    slope = 1.0 - hidden**2 if activation == "tanh" else total > 0
    loss, d_logits = loss_and_gradient(hidden @ kernel + bias, labels, blank_id)
    d_total = (d_logits @ kernel.T) * slope
    d_kernel = np.einsum("tud,tuv->dv", hidden, d_logits)
    return loss, (d_total.sum(1), d_total.sum(0), d_kernel, d_logits.sum((0, 1)))
