"""How the training state is split over the devices: rules from a parameter's name to mesh axes.

Layers know nothing of this. Parameters, their averages and the optimizer's moments are split over
fsdp (arXiv 2004.13336) and, for wide matrices, over model. Layers compute with parameters that are
gathered over fsdp (`gather_fsdp`), since fsdp splits the rows of a batch as data does.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

# The mesh axes of an array's last axes, by its path; axes before them (layers) are not split.
_RULES = (
    (r"(expand|query|key|value|position|gated|input|recurrent)/(kernel|up)", ("fsdp", "model")),
    (r"(feedforward/project|attention/out|pointwise)/(kernel|down)", ("model", "fsdp")),
    (r"((joint|decoder)/out|ctc_head)/kernel", ("fsdp", "model")),
    (r"embedding/embedding", (None, "fsdp")),
    (r"(kernel|down)", ("fsdp", None)),
    (r"up", (None, "fsdp")),
)


def state_shardings(abstract: PyTree, mesh: Mesh) -> PyTree[NamedSharding]:
    """Return a sharding for every array of a tree, by its path.

    An axis that does not divide evenly is not split.
    """

    def choose(path: tuple[object, ...], leaf: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding:
        name = "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        return NamedSharding(mesh, _partition_spec(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(choose, abstract)


def _partition_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    spec: list[str | None] = [None] * len(shape)
    for pattern, axes in _RULES:
        if re.search(pattern + "$", name) and len(shape) >= len(axes):
            for i, axis in enumerate(axes, start=len(shape) - len(axes)):
                if axis and shape[i] % mesh.shape[axis] == 0:
                    spec[i] = axis
            break
    return P(*spec)


def gather_fsdp(params: PyTree, mesh: Mesh) -> PyTree:
    """Return the parameters gathered over fsdp; over model they stay split.

    Left to choose, XLA keeps a layer's parameters split and sends activations instead.
    """

    def gather(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        spec = P(*(None if axis == "fsdp" else axis for axis in sharding.spec))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(gather, params, state_shardings(params, mesh))
