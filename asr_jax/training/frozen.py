"""Frozen parameters, which patterns of names select and no step changes.

A name is the parameter's path with dots, such as `predictor.embedding.embedding`. The parameters of
blocks are stacked along their first axis, and their names contain the block's number:
`encoder.blocks.2.attention.query.kernel`. A parameter that several blocks share is frozen only if
it is frozen for all of them.
"""

import fnmatch
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from asr_jax.config import OptimizerConfig

_STACK = "blocks"


def frozen_mask(params: PyTree, config: OptimizerConfig) -> PyTree:
    """Return a tree of bool arrays that broadcast with `params`, true where frozen.

    Frozen is what config.frozen matches; if there are adapters, or patterns in config.trained, also
    what is no adapter and no pattern in config.trained matches. Patterns are shell patterns: `*`
    matches anything, `?` one character, `[0-3]` one of a set. Raises ValueError for a pattern that
    matches no name, and if every parameter would be frozen.
    """
    depths, adapters = _depths(params), _adapters(params)

    def is_frozen(name: str, *, adapter: bool) -> bool:
        if _matches(name, config.frozen):
            return True
        few = bool(adapters or config.trained)
        return few and not adapter and not _matches(name, config.trained)

    def choose(path: jax.tree_util.KeyPath, leaf: jax.Array | np.ndarray) -> np.ndarray:
        adapter = tuple(_parts(path)) in adapters
        matched = np.array([is_frozen(name, adapter=adapter) for name in _names(path, depths)])
        if _STACK not in _parts(path):
            return matched.reshape(())
        # Row i of a shared parameter belongs to several blocks in sequence.
        chosen = matched.reshape(leaf.shape[0], -1).all(axis=1)
        return chosen.reshape(-1, *[1] * (len(leaf.shape) - 1))

    names = [
        name
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        for name in _names(path, depths)
    ]
    for field, patterns in (("frozen", config.frozen), ("trained", config.trained)):
        unused = [p for p in patterns if not any(_matches(name, [p]) for name in names)]
        if unused:
            raise ValueError(
                f"optimizer.{field} = {min(unused)!r}: matches no parameter; names are like "
                f"{', '.join(_examples(names))}"
            )
    chosen = jax.tree_util.tree_map_with_path(choose, params)
    if config.frozen and all(mask.all() for mask in jax.tree.leaves(chosen)):
        raise ValueError(f"optimizer.frozen = {config.frozen}: leaves no parameter to train")
    return chosen


def any_frozen(params: PyTree, config: OptimizerConfig) -> bool:
    """Return whether there are rules that freeze parameters."""
    return bool(config.frozen or config.trained or _adapters(params))


def not_wholly_frozen(params: PyTree, config: OptimizerConfig) -> PyTree:
    """Return a tree of bools: true for parameters of which any part is trained."""
    return jax.tree.map(lambda mask: not mask.all(), frozen_mask(params, config))


def without_gradients(params: PyTree, frozen: PyTree) -> PyTree:
    """Return `params` with frozen values as constants, through which no gradient flows."""

    def constant(leaf: jax.Array, mask: np.ndarray) -> jax.Array:
        if not mask.any():
            return leaf
        fixed = jax.lax.stop_gradient(leaf)
        return fixed if mask.all() else jnp.where(mask, fixed, leaf)

    return jax.tree.map(constant, params, frozen)


def keep_frozen(new: PyTree, old: PyTree, frozen: PyTree) -> PyTree:
    """Return `old` where frozen, `new` elsewhere.

    Adding zero or averaging equal values does not preserve every bit; this does.
    """

    def pick(mask: np.ndarray, new: ArrayLike, old: ArrayLike) -> ArrayLike:
        return jnp.where(mask, old, new) if mask.any() else new

    return jax.tree.map(pick, frozen, new, old)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _adapters(params: PyTree) -> set[tuple[str, ...]]:
    """Return the paths of the adapters' parameters: low-rank matrices without a diagonal."""
    paths = {tuple(_parts(path)) for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    return {
        (*layer, name)
        for *layer, name in paths
        if name in ("down", "up") and (*layer, "diagonal") not in paths
    }


def _parts(path: jax.tree_util.KeyPath) -> list[str]:
    return [str(part.key) for part in path]


def _names(path: jax.tree_util.KeyPath, depths: Mapping[tuple[str, ...], int]) -> list[str]:
    """Return a parameter's names: one for each block of a stack, otherwise one."""
    parts = _parts(path)
    if _STACK not in parts:
        return [".".join(parts)]
    place = parts.index(_STACK) + 1
    return [
        ".".join([*parts[:place], str(block), *parts[place:]])
        for block in range(depths[tuple(parts[:place])])
    ]


def _depths(params: PyTree) -> dict[tuple[str, ...], int]:
    """Return the number of blocks of every stack, by its path.

    Parameters that blocks share have a shorter first axis than the others.
    """
    depths: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        parts = _parts(path)
        if _STACK in parts:
            stack = tuple(parts[: parts.index(_STACK) + 1])
            depths[stack] = max(depths.get(stack, 0), leaf.shape[0])
    return depths


def _examples(names: Sequence[str]) -> list[str]:
    """Return one name for each network of the model."""
    examples: dict[str, str] = {}
    for name in names:
        examples.setdefault(name.partition(".")[0], name)
    return list(examples.values())
