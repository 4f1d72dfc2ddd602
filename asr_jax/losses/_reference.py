"""The transducer loss written out in NumPy, float64, one utterance and one cell at a time.

Slow and plain on purpose: it is what the other forms are compared with.
"""

import itertools

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def loss_and_gradient(
    logits: np.ndarray, labels: np.ndarray, blank_id: int = 0
) -> tuple[float, np.ndarray]:
    """Loss of one utterance's logits [T, U+1, V] without padding, and its gradient.

    alpha, beta: probability of getting to, and of getting on from, cell (t, u), as logarithms
    (Graves 2012, equations 16 to 18); the gradient is softmax times the cell's occupancy, less the
    occupancy of the edge on that edge's symbol (equation 20 and the softmax's derivative).
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


def enumerated_loss(logits: np.ndarray, labels: np.ndarray, blank_id: int = 0) -> float:
    """The definition: the sum over all alignments. The last symbol of each is a blank."""
    log_probs = log_softmax(logits)
    frames, cells, _ = log_probs.shape
    steps = frames - 1 + cells - 1
    scores = []
    for label_steps in itertools.combinations(range(steps), cells - 1):
        t, u, score = 0, 0, 0.0
        for step in range(steps):
            if step in label_steps:
                score += log_probs[t, u, labels[u]]
                u += 1
            else:
                score += log_probs[t, u, blank_id]
                t += 1
        scores.append(score + log_probs[t, u, blank_id])
    return -float(np.logaddexp.reduce(scores))


def joint_loss_and_gradients(
    encoded: np.ndarray,
    predicted: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    labels: np.ndarray,
    blank_id: int = 0,
    activation: str = "tanh",
) -> tuple[float, tuple[np.ndarray, ...]]:
    """One utterance's loss from encoded [T, D] and predicted [U+1, D], and all four gradients."""
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
