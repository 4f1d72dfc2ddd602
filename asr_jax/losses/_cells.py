"""The numbers that a loss reads from one cell's logits, their gradient, and the edges they give.

A cell (t, u) is frame t after u labels. A lattice needs three numbers of its logits: the logsumexp
of the symbols, the blank's logit and the next label's. With durations (TDT) it also needs their
logits, in the columns after the symbols. These few numbers are what tiles compute.
"""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

Factorization = Literal["softmax", "hat"]


class VocabularyLayout(NamedTuple):
    """The meaning of the logits' columns: first `symbols` symbols, the blank among them.

    factorization: "softmax" normalizes all symbols together. "hat" decides on blank by a sigmoid of
        its logit, and normalizes the labels alone (Variani et al. 2020, arXiv 2003.07705).
    """

    blank_id: int
    symbols: int
    factorization: Factorization = "softmax"


class Planes(NamedTuple):
    """Logsumexp of each cell's normalized symbols; logits of its blank, next label and the rest."""

    normalizer: Float32[Array, "... U1"]
    blank: Float32[Array, "... U1"]
    label: Float32[Array, "... U1"]
    rest: Float32[Array, "... U1 X"]


def labels_of_cells(
    labels: Int[Array, "B U"], label_lengths: Int[Array, " B"], layout: VocabularyLayout
) -> Int[Array, "B U1"]:
    """Return every cell's next label: 0 if there is none; V, which gives NaN, if it is invalid."""
    labels = jnp.pad(labels, ((0, 0), (0, 1)))
    inside = jnp.arange(labels.shape[1]) < label_lengths[:, None]
    right = (labels >= 0) & (labels < layout.symbols)
    return jnp.where(inside, jnp.where(right, labels, layout.symbols), 0)


def select_logits(
    logits: Float32[Array, "... U1 V"], labels: Int[Array, "... U1"], layout: VocabularyLayout
) -> Planes:
    """Return the planes of cells; labels broadcast against them, any symbol where there is none."""
    symbols, rest = jnp.split(logits, [layout.symbols], -1)
    labels = jnp.broadcast_to(labels, symbols.shape[:-1])
    label = jnp.take_along_axis(symbols, labels[..., None], -1)[..., 0]
    normalizer = jax.nn.logsumexp(jnp.where(_normalized(layout), symbols, -jnp.inf), -1)
    return Planes(normalizer, symbols[..., layout.blank_id], label, rest)


def select_logits_vjp(
    logits: Float32[Array, "... U1 V"],
    labels: Int[Array, "... U1"],
    normalizer: Float32[Array, "... U1"],
    cotangents: Planes,
    layout: VocabularyLayout,
) -> Float32[Array, "... U1 V"]:
    """Return the vector-Jacobian product of select_logits, in one pass and without a scatter."""
    softmax = jnp.exp(logits[..., : layout.symbols] - normalizer[..., None])
    softmax = jnp.where(_normalized(layout), softmax, 0.0)
    symbols = jnp.arange(layout.symbols)
    d_symbols = (
        cotangents.normalizer[..., None] * softmax
        + jnp.where(symbols == layout.blank_id, cotangents.blank[..., None], 0.0)
        + jnp.where(symbols == labels[..., None], cotangents.label[..., None], 0.0)
    )
    return jnp.concatenate([d_symbols, cotangents.rest], -1)


@partial(jax.custom_vjp, nondiff_argnames=("layout",))
def select_planes(
    logits: Float[Array, "B T U1 V"],
    labels: Int[Array, "B U1"],
    real: Bool[Array, "B T U1"],
    layout: VocabularyLayout,
) -> Planes:
    """Return select_logits of 4-D logits of any float type, in float32.

    Cells that are not real may hold anything and return anything; their gradient is zero. Masking
    the gradient saves the pass over the logits, and the copy, that clearing these cells would take.
    """
    return select_logits(logits.astype(jnp.float32), labels[:, None], layout)


def _fwd(logits, labels, real, layout):
    planes = select_logits(logits.astype(jnp.float32), labels[:, None], layout)
    return planes, (logits, labels, real, planes.normalizer)


def _bwd(layout, residuals, cotangents):
    logits, labels, real, normalizer = residuals
    float32 = logits.astype(jnp.float32)
    gradient = select_logits_vjp(float32, labels[:, None], normalizer, cotangents, layout)
    return jnp.where(real[..., None], gradient, 0.0).astype(logits.dtype), None, None


select_planes.defvjp(_fwd, _bwd)


def edges(
    planes: Planes, layout: VocabularyLayout
) -> tuple[Float32[Array, "B T U1"], Float32[Array, "B T U"]]:
    """Return log P(blank) of every cell, and log P(next label) of all cells but the last."""
    label = (planes.label - planes.normalizer)[..., :-1]
    if layout.factorization == "softmax":
        return planes.blank - planes.normalizer, label
    return jax.nn.log_sigmoid(planes.blank), label + jax.nn.log_sigmoid(-planes.blank)[..., :-1]


def _normalized(layout):
    if layout.factorization == "softmax":
        return True
    return jnp.arange(layout.symbols) != layout.blank_id
