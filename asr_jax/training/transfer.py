"""Transfer of parameters from one model to another, also between different label sets."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from asr_jax.config import Config

# Maps a parameter's name to its axis of labels and the labels along it.
LabelAxes = Mapping[str, tuple[int, Sequence[str]]]


def label_axes(config: Config, pieces: Sequence[str]) -> LabelAxes:
    """Return the label axis of every parameter that has one.

    TDT's durations follow the labels on the joint network's output axis.
    """
    durations = config.objective.durations if config.objective.kind == "tdt" else ()
    joint = [*pieces, *(f"{frames} frames" for frames in durations)]
    return {
        "predictor.embedding.embedding": (0, pieces),
        "decoder.embedding.embedding": (0, pieces),
        "decoder.out.kernel": (1, pieces),
        "decoder.out.bias": (0, pieces),
        "joint.out.kernel": (1, joint),
        "joint.out.bias": (0, joint),
        "ctc_head.kernel": (1, pieces),
        "ctc_head.bias": (0, pieces),
        "out.kernel": (1, pieces),
        "out.bias": (0, pieces),
    }


def shape_mismatches(fresh: PyTree, given: PyTree, axes: LabelAxes) -> list[str]:
    """Return a phrase for every parameter whose shape differs, or that one of the trees lacks.

    `axes` are the label axes of either model; their length may differ. A whole network that one
    model lacks is not a mismatch, unless it is the encoder.
    """
    new, old = _shapes(fresh, axes), _shapes(given, axes)
    missing = "missing"
    both = {"encoder"} | {_network(name) for name in new} & {_network(name) for name in old}
    return [
        f"{name} is {old.get(name, missing)} in the source, {new.get(name, missing)} in the config"
        for name in sorted(new.keys() | old.keys())
        if _network(name) in both and old.get(name) != new.get(name)
    ]


def transferred(
    fresh: PyTree, given: PyTree, fresh_axes: LabelAxes, given_axes: LabelAxes
) -> PyTree:
    """Return `fresh` with the parameters of `given`, which has no `shape_mismatches`.

    An entry of a label that both models know moves to that label's index in `fresh`. Entries of
    other labels, and networks that `given` lacks, keep their values in `fresh`.
    """
    old = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(given)}

    def take(path: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
        name = _name(path)
        if name not in old or name not in fresh_axes:
            return old.get(name, leaf)
        axis, labels = fresh_axes[name]
        old_index = {label: n for n, label in enumerate(given_axes[name][1])}
        pairs = [(n, old_index[label]) for n, label in enumerate(labels) if label in old_index]
        to, source = np.array(pairs, int).reshape(-1, 2).T
        return leaf.at[(slice(None),) * axis + (to,)].set(old[name].take(source, axis))

    return jax.tree_util.tree_map_with_path(take, fresh)


def _shapes(tree: PyTree, axes: LabelAxes) -> dict[str, str]:
    """Return the parameters' shapes by name, as text with V for an axis of labels."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name, sizes = _name(path), [str(size) for size in leaf.shape]
        if name in axes:
            sizes[axes[name][0]] = "V"
        shapes[name] = f"({', '.join(sizes)})"
    return shapes


def _network(name: str) -> str:
    return name.partition(".")[0]


def _name(path: jax.tree_util.KeyPath) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
