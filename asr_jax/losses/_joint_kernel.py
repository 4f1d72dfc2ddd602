"""The joint's tiles by the kernels of `_mosaic_gpu`, in the terms of `_joint`.

A tile is 64 frames and one cell. The kernels find its blocks themselves: to them all utterances are
one, of all their blocks' frames and of all their cells.
"""

import jax.numpy as jnp

from asr_jax.losses import _mosaic_gpu
from asr_jax.losses._cells import Planes

pad_vocabulary = _mosaic_gpu.pad_vocabulary


def planes(blocks, tiles, kernel, bias, options) -> Planes:
    """Planes [1, N, 64] in the order of the tiles; beyond their count they hold anything."""
    encoded, predicted, labels = _as_one_utterance(blocks)
    arrays = encoded, predicted, *pad_vocabulary(kernel, bias), labels
    listed = _listed(tiles.encoded_block[0], tiles.predicted_block[0])
    found = _mosaic_gpu.joint_forward(*arrays, listed, tiles.count[0], **_static(options))
    normalizer, blank, label = (x[None] for x in found)
    # Of a label outside the vocabulary the kernel finds nothing, or padding.
    outside = labels[0, tiles.predicted_block[0]] >= kernel.shape[1]
    label = jnp.where(outside[:, None], jnp.nan, label)
    return Planes(normalizer, blank, label, normalizer[..., None][..., :0])


def gradient_rows(blocks, index, kernel, bias, given, options):
    """Hidden states [1, rows, D] and the gradient of logits [1, rows, V] of a step's tiles.

    index: which blocks of encoded and of predicted meet in them. given: their normalizers, and the
    cotangents of the planes. kernel and bias: padded by `pad_vocabulary`.
    """
    encoded, predicted, labels = _as_one_utterance(blocks)
    encoded_block, predicted_block = index
    normalizer, cotangents = given
    listed = _listed(encoded_block[0], predicted_block[0])
    planes = normalizer[0], cotangents.normalizer[0], cotangents.blank[0], cotangents.label[0]
    arrays = encoded, predicted, kernel, bias, labels, listed, *planes
    d_logits, hidden = _mosaic_gpu.joint_gradient_rows(*arrays, **_static(options))
    return hidden[None], d_logits[None]


def _static(options):
    columns = options.columns
    return dict(
        blank_id=columns.blank_id,
        activation=options.activation,
        normalize_blank=columns.factorization == "softmax",
    )


def _as_one_utterance(blocks):
    encoded, predicted, labels = blocks
    width = encoded.shape[-1]
    return encoded.reshape(1, -1, width), predicted.reshape(1, -1, width), labels.reshape(1, -1)


def _listed(encoded_block, predicted_block):
    zero = jnp.zeros_like(encoded_block)
    return jnp.stack([zero, encoded_block * _mosaic_gpu.ROWS, predicted_block], -1)
