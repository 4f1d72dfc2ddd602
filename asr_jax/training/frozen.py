"""Parameters that keep their bits (optimizer.frozen), found by patterns of their names.

A name is the path with dots, `predictor.embedding.embedding`. Blocks lie stacked along a first
axis; their names have the block's number: `encoder.blocks.2.attention.query.kernel`. What blocks
share is frozen where it is for all of them.
"""

import fnmatch
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

_STACK = "blocks"


def frozen_mask(params: PyTree, patterns: Sequence[str]) -> PyTree:
    """A tree of bool arrays, true where a parameter is frozen, that broadcast with `params`.

    Patterns are those of a shell: `*` is anything, `?` one character, `[0-3]` one of some. Raises
    ValueError for one that fits no name, and where nothing would be left to train.
    """
    depths = _depths(params)

    def choose(path: jax.tree_util.KeyPath, leaf: jax.Array | np.ndarray) -> np.ndarray:
        matched = np.array([_matches(name, patterns) for name in _names(path, depths)])
        if _STACK not in _parts(path):
            return matched.reshape(())
        # A block whose matrix several blocks share is frozen where it is for all of them.
        chosen = matched.reshape(leaf.shape[0], -1).all(axis=1)
        return chosen.reshape(-1, *[1] * (len(leaf.shape) - 1))

    names = [
        name
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        for name in _names(path, depths)
    ]
    unused = [p for p in patterns if not any(_matches(name, [p]) for name in names)]
    if unused:
        raise ValueError(
            f"optimizer.frozen = {min(unused)!r}: fits no parameter; they are named as "
            f"{', '.join(_examples(names))}"
        )
    chosen = jax.tree_util.tree_map_with_path(choose, params)
    if patterns and all(mask.all() for mask in jax.tree.leaves(chosen)):
        raise ValueError(f"optimizer.frozen = {tuple(patterns)}: leaves no parameter to train")
    return chosen


def not_wholly_frozen(params: PyTree, patterns: Sequence[str]) -> PyTree:
    """A tree of bools: whether any part of a parameter is trained."""
    return jax.tree.map(lambda mask: not mask.all(), frozen_mask(params, patterns))


def without_gradients(params: PyTree, frozen: PyTree) -> PyTree:
    """The same numbers, as constants where they are frozen: nothing goes back beyond these."""

    def constant(leaf: jax.Array, mask: np.ndarray) -> jax.Array:
        if not mask.any():
            return leaf
        fixed = jax.lax.stop_gradient(leaf)
        return fixed if mask.all() else jnp.where(mask, fixed, leaf)

    return jax.tree.map(constant, params, frozen)


def keep_frozen(new: PyTree, old: PyTree, frozen: PyTree) -> PyTree:
    """`new`, but `old` where frozen: adding zeros is not enough, nor is averaging equals."""

    def pick(mask: np.ndarray, new: ArrayLike, old: ArrayLike) -> ArrayLike:
        return jnp.where(mask, old, new) if mask.any() else new

    return jax.tree.map(pick, frozen, new, old)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _parts(path: jax.tree_util.KeyPath) -> list[str]:
    return [str(part.key) for part in path]


def _names(path: jax.tree_util.KeyPath, depths: Mapping[tuple[str, ...], int]) -> list[str]:
    """The names of a parameter: one for each block of a stack."""
    parts = _parts(path)
    if _STACK not in parts:
        return [".".join(parts)]
    place = parts.index(_STACK) + 1
    return [
        ".".join([*parts[:place], str(block), *parts[place:]])
        for block in range(depths[tuple(parts[:place])])
    ]


def _depths(params: PyTree) -> dict[tuple[str, ...], int]:
    """How many blocks every stack has: what blocks share has a shorter axis."""
    depths: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = _parts(path)
        if _STACK in parts:
            stack = tuple(parts[: parts.index(_STACK) + 1])
            depths[stack] = max(depths.get(stack, 0), leaf.shape[0])
    return depths


def _examples(names: Sequence[str]) -> list[str]:
    """A name of every part of the model."""
    examples: dict[str, str] = {}
    for name in names:
        examples.setdefault(name.partition(".")[0], name)
    return list(examples.values())
