"""How the training state lies on the devices: rules from a parameter's name to the mesh's axes.

Layers know nothing of this. Parameters, their averages and the optimizer's moments are split over
fsdp (arXiv 2004.13336) and, for wide matrices, over model. Layers compute with parameters that are
whole over fsdp (`gather_fsdp`), which shares the rows of a batch as data does.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# The last axes of an array whose path matches; axes before them (layers) are whole.
_RULES = (
    (r"(expand|query|key|value|position|gated|input|recurrent)/(kernel|up)", ("fsdp", "model")),
    (r"(feedforward/project|attention/out|pointwise)/(kernel|down)", ("model", "fsdp")),
    (r"((joint|decoder)/out|ctc_head)/kernel", ("fsdp", "model")),
    (r"embedding/embedding", (None, "fsdp")),
    (r"(kernel|down)", ("fsdp", None)),
    (r"up", (None, "fsdp")),
)


def state_shardings(abstract: Any, mesh: Mesh) -> Any:
    """A sharding for every array of a tree, found by its path; small or odd ones are whole."""

    def choose(path, leaf) -> NamedSharding:
        name = "/".join(str(getattr(p, "key", getattr(p, "name", p))) for p in path)
        spec: list[str | None] = [None] * len(leaf.shape)
        for pattern, axes in _RULES:
            if re.search(pattern + "$", name) and len(leaf.shape) >= len(axes):
                start = len(leaf.shape) - len(axes)
                for i, axis in enumerate(axes, start):
                    if axis and leaf.shape[i] % mesh.shape[axis] == 0:
                        spec[i] = axis
                break
        return NamedSharding(mesh, P(*spec))

    return jax.tree_util.tree_map_with_path(choose, abstract)


def gather_fsdp(params: Any, mesh: Mesh) -> Any:
    """The same numbers, whole over fsdp; over model they stay split.

    Left to choose, XLA keeps a layer's parameters split, and sends activations instead.
    """

    def whole(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        spec = P(*(None if axis == "fsdp" else axis for axis in sharding.spec))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(whole, params, state_shardings(params, mesh))
