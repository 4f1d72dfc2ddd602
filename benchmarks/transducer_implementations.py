"""The transducer losses that the benchmark compares, and the batches that it runs them on.

JAX implementations are functions from arrays to the loss of each utterance. Torch implementations
are built for a platform and a problem, and take floats and integers. Torch and the other libraries
are imported where they are used, so that any of them may be missing.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Problem:
    """Shapes of a batch: (frames, labels) of each utterance. Width 0: the inputs are 4-D logits."""

    lengths: tuple[tuple[int, int], ...]
    vocabulary: int
    width: int
    dtype: str

    @property
    def frames(self) -> int:
        return max(frames for frames, _ in self.lengths)

    @property
    def labels(self) -> int:
        return max(labels for _, labels in self.lengths)

    @property
    def cells(self) -> int:
        return sum(frames * (labels + 1) for frames, labels in self.lengths)

    @property
    def padded_cells(self) -> int:
        return len(self.lengths) * self.frames * (self.labels + 1)

    def float_shapes(self) -> list[tuple[int, ...]]:
        batch, cells, vocabulary = len(self.lengths), self.labels + 1, self.vocabulary
        if not self.width:
            return [(batch, self.frames, cells, vocabulary)]
        rows = [(batch, self.frames, self.width), (batch, cells, self.width)]
        return [*rows, (self.width, vocabulary), (vocabulary,)]

    def draw(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Draw floats and integers as the public benchmark: uniform, weights of a new Linear."""
        random = np.random.default_rng(20220227)
        floats = [random.random(shape, np.float32) for shape in self.float_shapes()]
        for weights in floats[2:]:
            weights[...] = (2 * weights - 1) * self.width**-0.5
        labels = random.integers(1, self.vocabulary, (len(self.lengths), self.labels))
        frame_lengths, label_lengths = np.array(self.lengths, np.int32).T.copy()
        return floats, [labels.astype(np.int32), frame_lengths, label_lengths]


class NotRun(Exception):
    """The reason why an implementation was not run."""


def ours(implementation: str | None = None, **options: float) -> Any:
    def loss(*arguments):
        from asr_jax.losses import rnnt_loss, transducer_loss

        if len(arguments) == 4:  # 4-D logits
            if implementation is not None:
                raise NotRun("rnnt_loss has one implementation")
            return rnnt_loss(*arguments)
        return transducer_loss(*arguments, implementation=implementation, **options)  # pyright: ignore[reportArgumentType]

    return loss


def jax_4d(*arguments):
    """The joint network written out, then rnnt_loss of its logits."""
    import jax.numpy as jnp

    from asr_jax.losses import rnnt_loss

    if len(arguments) == 4:
        raise NotRun("needs the inputs of the joint")
    encoded, predicted, kernel, bias, *lengths = arguments
    return rnnt_loss(jnp.tanh(encoded[:, :, None] + predicted[:, None]) @ kernel + bias, *lengths)


def axlearn(*arguments):
    """The method of axlearn's Transducer layer: one frame at a time, without rematerialization."""
    import jax
    import jax.numpy as jnp

    if len(arguments) == 4:
        raise NotRun("has no loss of 4-D logits")
    encoded, predicted, kernel, bias, labels, frame_lengths, label_lengths = arguments
    one_hot = jax.nn.one_hot(jnp.pad(labels, ((0, 0), (0, 1))), kernel.shape[1])

    def frame(encoded):
        logits = jnp.tanh(encoded[:, None] + predicted) @ kernel + bias
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        return log_probs[..., 0], jnp.sum(log_probs * one_hot, -1)[:, :-1]

    blank, label = jax.lax.map(frame, encoded.swapaxes(0, 1))

    # A lattice by frames. With s(u) the sum of the first u labels' log-probabilities, alpha within
    # a frame is a cumulative logsumexp: alpha(u) = s(u) + log sum_{v <= u} exp(entered(v) - s(v)).
    def up(entered, label):
        summed = jnp.pad(jnp.cumsum(label, -1), ((0, 0), (1, 0)))
        return summed + jax.lax.cumlogsumexp(entered - summed, 1)

    def advance(entered, edges):
        blank, label = edges
        entered = up(entered, label) + blank
        return entered, entered

    start = jnp.full(predicted.shape[:2], -1e30).at[:, 0].set(0.0)
    _, entered = jax.lax.scan(advance, start, (blank, label))
    rows = jnp.arange(len(labels))
    return -entered[frame_lengths - 1, rows, label_lengths]


def _logits(floats):
    """Return float32 logits, as these losses require; the joint runs in the inputs' dtype."""
    if len(floats) == 1:
        return floats[0].float()
    encoded, predicted, weight, bias = floats
    hidden = (encoded[:, :, None] + predicted[:, None]).tanh()
    linear = importlib.import_module("torch").nn.functional.linear
    return linear(hidden, weight, bias).float()


def torchaudio(platform: str, problem: Problem) -> Any:
    rnnt_loss = importlib.import_module("torchaudio").functional.rnnt_loss
    return lambda floats, integers: rnnt_loss(_logits(floats), *integers, blank=0, reduction="none")


def _boundary(labels, frame_lengths, label_lengths):
    torch = importlib.import_module("torch")
    zero = torch.zeros_like(label_lengths)
    return labels.long(), torch.stack([zero, zero, label_lengths, frame_lengths], 1).long()


def fast_rnnt(platform: str, problem: Problem) -> Any:
    rnnt_loss = importlib.import_module("fast_rnnt").rnnt_loss

    def losses(floats, integers):
        symbols, boundary = _boundary(*integers)
        return rnnt_loss(_logits(floats), symbols, 0, boundary, reduction="none")

    return losses


def fast_rnnt_pruned(platform: str, problem: Problem) -> Any:
    """Not exact: computes the joint in a window of 5 labels per frame, chosen by an additive joint.

    As in the public benchmark, the additive joint has its scale, and its loss has no gradient.
    Unlike there, the projection to the vocabulary is included, as training needs it.
    """
    library = importlib.import_module("fast_rnnt")
    torch = importlib.import_module("torch")
    if not problem.width:
        raise NotRun("needs the inputs of the joint")

    def losses(floats, integers):
        encoded, predicted, weight, bias = floats
        symbols, boundary = _boundary(*integers)
        with torch.no_grad():
            linear = torch.nn.functional.linear
            _, (symbol_occupancy, blank_occupancy) = library.rnnt_loss_smoothed(
                lm=linear(predicted, weight).float(),
                am=linear(encoded, weight, bias).float(),
                symbols=symbols,
                termination_symbol=0,
                lm_only_scale=0.25,
                am_only_scale=0.0,
                boundary=boundary,
                reduction="sum",
                return_grad=True,
            )
            ranges = library.get_rnnt_prune_ranges(
                px_grad=symbol_occupancy, py_grad=blank_occupancy, boundary=boundary, s_range=5
            )
        kept_encoded, kept_predicted = library.do_rnnt_pruning(encoded, predicted, ranges)
        logits = linear((kept_encoded + kept_predicted).tanh(), weight, bias).float()
        return library.rnnt_loss_pruned(logits, symbols, ranges, 0, boundary, reduction="none")

    return losses


def warprnnt_numba(platform: str, problem: Problem) -> Any:
    loss = importlib.import_module("warprnnt_numba").RNNTLossNumba(blank=0, reduction="none")
    # On a CPU it is a Python loop over cells, about 0.4 ms each.
    if platform == "cpu" and problem.cells > 100_000:
        raise NotRun(f"a Python loop on CPUs, about {problem.cells * 4e-4:.0f} s per step")
    return lambda floats, integers: loss(_logits(floats), *integers)


JAX = {
    "ours": ours(),
    "ours-1e-9": ours(None, negligible_gradient=1e-9),
    "jax-4d": jax_4d,
    "axlearn": axlearn,
}
TORCH = {
    "torchaudio": torchaudio,
    "fast_rnnt": fast_rnnt,
    "fast_rnnt-pruned": fast_rnnt_pruned,
    "warprnnt_numba": warprnnt_numba,
}
INEXACT = {"fast_rnnt-pruned"}
