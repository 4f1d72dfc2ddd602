"""The tiles of `_joint`, computed by the kernels of `_mosaic_gpu`.

A tile is 64 frames and one cell. The kernels fetch its blocks themselves: they see the batch as one
utterance that has all frames and all cells of its blocks.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from asr_jax.losses import _mosaic_gpu
from asr_jax.losses._cells import Planes
from asr_jax.losses._joint import Blocks, StepTiles, TilePlan, TileRows
from asr_jax.losses._tiles import Tiles

pad_vocabulary = _mosaic_gpu.pad_vocabulary


def tile_planes(
    blocks: Blocks,
    tiles: Tiles,
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"],
    plan: TilePlan,
) -> Planes:
    """Return the planes [1, N, 64] of all tiles; beyond their count, values are arbitrary."""
    joint = _as_one_utterance(blocks, *pad_vocabulary(kernel, bias))
    listed = _listed(tiles.encoded_block[0], tiles.predicted_block[0])
    planes = _run(_mosaic_gpu.joint_forward, plan, joint, listed, tiles.count[0])
    normalizer, blank, label = (x[None] for x in planes)
    # The kernel finds no logit, or padding, for a label outside the vocabulary.
    outside = joint.labels[0, tiles.predicted_block[0]] >= kernel.shape[1]
    label = jnp.where(outside[:, None], jnp.nan, label)
    return Planes(normalizer, blank, label, normalizer[..., None][..., :0])


def tile_gradient_rows(
    blocks: Blocks,
    kernel: Float[Array, "D V"],
    bias: Float[Array, " V"],
    plan: TilePlan,
    tiles: StepTiles,
) -> TileRows:
    """Return hidden states [1, rows, D] and logits' gradients [1, rows, V] of a step's tiles.

    kernel, bias: padded by `pad_vocabulary`.
    """
    joint = _as_one_utterance(blocks, kernel, bias)
    listed = _listed(tiles.encoded_block[0], tiles.predicted_block[0])
    cotangents = _mosaic_gpu.CellPlanes(*(x[0] for x in tiles.cotangents[:3]))
    rows_of = _mosaic_gpu.joint_gradient_rows
    d_logits, hidden = _run(rows_of, plan, joint, listed, tiles.normalizer[0], cotangents)
    return TileRows(hidden[None], d_logits[None])


def _run(function, plan, *arrays):
    return function(
        *arrays,
        blank_id=plan.layout.blank_id,
        activation=plan.activation,
        normalize_blank=plan.layout.factorization == "softmax",
    )


def _as_one_utterance(blocks, kernel, bias):
    encoded, predicted, labels = blocks[:3]
    width = encoded.shape[-1]
    return _mosaic_gpu.JointOperands(
        encoded.reshape(1, -1, width),
        predicted.reshape(1, -1, width),
        kernel,
        bias,
        labels.reshape(1, -1),
    )


def _listed(encoded_block, predicted_block):
    zero = jnp.zeros_like(encoded_block)
    return jnp.stack([zero, encoded_block * _mosaic_gpu.ROWS, predicted_block], -1)
