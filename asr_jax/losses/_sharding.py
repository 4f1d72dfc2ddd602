"""Over which devices a batch of utterances is spread."""

from math import gcd, prod
from typing import TypeVar

import jax

Arrays = TypeVar("Arrays", bound=tuple)


def batch_shards(joint, computation):
    """Parts of the batch within which utterances are packed. The kernels know of one."""
    if computation.implementation == "mosaic_gpu":
        return 1
    return gcd(len(joint.encoded), devices())


def devices() -> int:
    """Over how many devices a batch may be spread, where nobody tells how it really is.

    Utterances are packed within each of so many parts of the batch. With at least as many parts as
    the batch has shards no device has to know another's utterances, and one part a device packs
    best.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.device_count()
    return prod(mesh.shape[name] for name in mesh.axis_names if name not in mesh.manual_axes)


def vary_alike(arrays: Arrays) -> Arrays:
    """Under shard_map: let all arrays of a tuple vary over the axes that one of them varies over.

    Loops carry sums of all of them; and the sum over devices that the kernel's gradient needs is
    then that of this cast.
    """
    varying = lambda x: jax.typeof(x).manual_axis_type.varying
    axes = frozenset().union(*map(varying, jax.tree.leaves(arrays)))

    def cast(x):
        missing = tuple(axes - varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, arrays)
