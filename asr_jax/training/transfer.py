"""A model that starts from another's parameters, also where its labels are others."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from asr_jax.config import Config

LabelAxes = Mapping[str, tuple[int, Sequence[str]]]


def label_axes(config: Config, pieces: Sequence[str]) -> LabelAxes:
    """Of each parameter with an entry for every label: which axis that is, and what stands on it.

    Durations of TDT follow the labels.
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
    """What of `given` has another shape than in `fresh`, or is in one of them alone: phrases.

    `axes` are the label axes of either, and may have any length. A network of which one of both has
    nothing is no misfit, but the encoder is.
    """
    new, old = _shapes(fresh, axes), _shapes(given, axes)
    both = {"encoder"} | {_network(name) for name in new} & {_network(name) for name in old}
    return [
        f"{name} is {old.get(name, 'missing')} there, {new.get(name, 'missing')} here"
        for name in sorted(new.keys() | old.keys())
        if _network(name) in both and old.get(name) != new.get(name)
    ]


def transferred(
    fresh: PyTree, given: PyTree, fresh_axes: LabelAxes, given_axes: LabelAxes
) -> PyTree:
    """`fresh` with all that `given` has for it; there are no `shape_mismatches`.

    Entries of labels that both know go to where they are in `fresh`. Those of other labels, and the
    networks that `given` lacks, stay as they are in `fresh`.
    """
    old = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(given)}

    def take(path: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
        name = _name(path)
        if name not in old or name not in fresh_axes:
            return old.get(name, leaf)
        axis, labels = fresh_axes[name]
        place = {label: n for n, label in enumerate(given_axes[name][1])}
        pairs = [(n, place[label]) for n, label in enumerate(labels) if label in place]
        to, of = np.array(pairs, int).reshape(-1, 2).T
        return leaf.at[(slice(None),) * axis + (to,)].set(old[name].take(of, axis))

    return jax.tree_util.tree_map_with_path(take, fresh)


def _shapes(tree: PyTree, axes: LabelAxes) -> dict[str, str]:
    """The shapes of the parameters, by name, as a user is told them: an axis of labels is V."""
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
