"""The devices that share a batch of utterances."""

from math import gcd, prod
from typing import TypeVar

import jax

Arrays = TypeVar("Arrays", bound=tuple)


def batch_shards(joint, computation):
    """Return the number of parts of the batch within which utterances are packed."""
    if computation.implementation == "mosaic_gpu":
        return 1
    return gcd(len(joint.encoded), devices())


def devices() -> int:
    """Return over how many devices a batch may be spread; its actual sharding is not known.

    Utterances are packed within this many parts of the batch. If there are at least as many parts
    as shards, no device needs another's utterances. One part per device packs best.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count()
    return prod(mesh.shape[name] for name in mesh.axis_names if name not in mesh.manual_axes)


def vary_alike(arrays: Arrays) -> Arrays:
    """Under shard_map: let all arrays of a tuple vary over the axes that any of them varies over.

    Loops carry sums of all of them, which must vary alike. The transpose of this cast is the sum
    over devices that the kernel's gradient needs.
    """
    varying = lambda x: jax.typeof(x).manual_axis_type.varying
    axes = frozenset().union(*map(varying, jax.tree.leaves(arrays)))

    def cast(x):
        missing = tuple(axes - varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, arrays)
