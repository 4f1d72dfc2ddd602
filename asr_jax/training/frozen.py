"""Parameters that keep their bits (optimizer.frozen), found by patterns of their names.

A name is the path with dots, `predictor.embedding.embedding`. Blocks lie stacked along a first
axis; their names have the block's number: `encoder.blocks.2.attention.query.kernel`. What blocks
share is frozen where it is for all of them.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_STACK = "blocks"


def frozen_mask(params: Any, patterns: Sequence[str]) -> Any:
    """A tree of bool arrays, true where a parameter is frozen, that broadcast with `params`.

    Patterns are those of a shell: `*` is anything, `?` one character, `[0-3]` one of some. Raises
    ValueError for one that fits no name, and where nothing would be left to train.
    """
    unused = set(patterns)

    def matches(name: str) -> bool:
        fitting = {pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)}
        unused.difference_update(fitting)
        return bool(fitting)

    depths = _depths(params)

    def choose(path: Any, leaf: Any) -> np.ndarray:
        parts = [str(part.key) for part in path]
        if _STACK not in parts:
            return np.array(matches(".".join(parts)))
        at = parts.index(_STACK) + 1
        names = [
            ".".join([*parts[:at], str(n), *parts[at:]]) for n in range(depths[tuple(parts[:at])])
        ]
        # Not all(...) of the names at once: a pattern that fits only some is of use.
        each = np.array([matches(name) for name in names])
        chosen = each.reshape(leaf.shape[0], -1).all(axis=1)
        return chosen.reshape(-1, *[1] * (len(leaf.shape) - 1))

    chosen = jax.tree_util.tree_map_with_path(choose, params)
    if unused:
        raise ValueError(
            f"optimizer.frozen = {min(unused)!r}: fits no parameter; they are named as "
            f"{', '.join(_examples(params))}"
        )
    if patterns and all(mask.all() for mask in jax.tree.leaves(chosen)):
        raise ValueError(f"optimizer.frozen = {tuple(patterns)}: leaves no parameter to train")
    return chosen


def not_wholly_frozen(params: Any, patterns: Sequence[str]) -> Any:
    """A tree of bools: whether any part of a parameter is trained."""
    return jax.tree.map(lambda mask: not mask.all(), frozen_mask(params, patterns))


def without_gradients(params: Any, frozen: Any) -> Any:
    """The same numbers, as constants where they are frozen: nothing goes back beyond these."""

    def constant(leaf: jax.Array, mask: np.ndarray) -> jax.Array:
        if not mask.any():
            return leaf
        fixed = jax.lax.stop_gradient(leaf)
        return fixed if mask.all() else jnp.where(mask, fixed, leaf)

    return jax.tree.map(constant, params, frozen)


def keep_frozen(new: Any, old: Any, frozen: Any) -> Any:
    """`new`, but `old` where frozen: adding zeros is not enough, nor is averaging equals."""
    pick = lambda mask, a, b: jnp.where(mask, b, a) if mask.any() else a
    return jax.tree.map(pick, frozen, new, old)


def _depths(params: Any) -> dict[tuple[str, ...], int]:
    """How many blocks every stack has: what blocks share has a shorter axis."""
    depths: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = tuple(str(part.key) for part in path)
        if _STACK in parts:
            stack = parts[: parts.index(_STACK) + 1]
            depths[stack] = max(depths.get(stack, 0), leaf.shape[0])
    return depths


def _examples(params: Any) -> list[str]:
    """A name of every part of the model."""
    names: dict[str, str] = {}
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        parts = [str(part.key) for part in path]
        if _STACK in parts:
            parts.insert(parts.index(_STACK) + 1, "0")
        names.setdefault(parts[0], ".".join(parts))
    return list(names.values())
