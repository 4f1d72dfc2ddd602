"""Parameters that never change are stored once, in RUN/frozen, and not in every checkpoint.

With adapters of rank 8, a checkpoint of a model of 0.6 billion parameters then takes 0.1 GB instead
of 10 GB, counted from the shapes. RUN/frozen is written before the first checkpoint; with
`checkpoint.directory`, it is in that folder or bucket.
"""

from collections.abc import Iterator, Mapping

import jax
from etils import epath
from jaxtyping import PyTree
from orbax.checkpoint import v1 as ocp

from asr_jax.distributed.processes import first_process

FROZEN = "frozen"
Path = tuple[str, ...]


def keep_frozen_parameters(folder: epath.Path, params: PyTree, trained: PyTree) -> None:
    """Write the parameters that are not `trained`, a tree of bools.

    Without any, what a start before the first checkpoint has left is deleted.
    """
    kept = {path for path, changes in _leaves(trained) if not changes}
    if kept:
        ocp.save(folder / FROZEN, part_of(params, kept), overwrite=True)
    else:
        _delete(folder / FROZEN)


@first_process
def _delete(folder: epath.Path) -> None:
    if folder.exists():
        folder.rmtree()


def frozen_paths(folder: epath.Path) -> set[Path]:
    """Return the paths of the parameters that the folder of a run's checkpoints stores once."""
    if not (folder / FROZEN).exists():
        return set()
    return {path for path, _ in _leaves(ocp.metadata(folder / FROZEN).metadata)}


def read_frozen_parameters(folder: epath.Path, abstract: PyTree) -> PyTree:
    """Return the stored parameters with the shapes and shardings of `abstract`."""
    stored = frozen_paths(folder)
    return ocp.load(folder / FROZEN, part_of(abstract, stored)) if stored else {}


def without(params: PyTree, paths: set[Path]) -> PyTree:
    """Return the parameters whose paths are not among `paths`."""
    return part_of(params, {path for path, _ in _leaves(params)} - paths)


def part_of(params: PyTree, paths: set[Path]) -> PyTree:
    """Return the parameters with these paths, a tree of dicts."""
    part: dict[str, PyTree] = {}
    for path, leaf in _leaves(params):
        if path in paths:
            inner = part
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = leaf
    return part


def joined(one: Mapping[str, PyTree], other: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Return the tree with the leaves of both trees of dicts."""
    both = dict(one)
    for name, inner in other.items():
        both[name] = joined(both[name], inner) if name in both else inner
    return both


def _leaves(tree: PyTree) -> Iterator[tuple[Path, PyTree]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield tuple(str(part.key) for part in path), leaf
