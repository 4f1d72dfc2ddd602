"""How arrays lie on the devices: the mesh, and rules from a parameter's name to its axes.

Layers know nothing of this. A batch is split over the axes data and fsdp; parameters, their
averages and the optimizer's moments over fsdp (arXiv 2004.13336) and, for wide matrices, model.
"""

import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from asr_jax.config import MeshConfig

BATCH = P(("data", "fsdp"))

# The last axes of an array whose path matches; axes before them (layers) are whole.
_RULES = (
    (r"(expand|query|key|value|position|gated|input|recurrent)/kernel", ("fsdp", "model")),
    (r"(feedforward/project|attention/out|pointwise)/kernel", ("model", "fsdp")),
    (r"(joint/out|ctc_head)/kernel", ("fsdp", "model")),
    (r"embedding/embedding", (None, "fsdp")),
    (r"kernel", ("fsdp", None)),
)


def make_mesh(config: MeshConfig) -> Mesh:
    """All devices of the run, arranged data x fsdp x model."""
    devices = jax.device_count()
    data = config.data
    if data == -1:
        data = max(1, devices // (config.fsdp * config.model))
    if data * config.fsdp * config.model != devices:
        raise ValueError(
            f"mesh.data x mesh.fsdp x mesh.model = {data} x {config.fsdp} x {config.model}: "
            f"must be the number of devices, {devices}"
        )
    shape = (data, config.fsdp, config.model)
    return jax.make_mesh(shape, ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3)


def check_batch(utterances: int, mesh: Mesh, accumulate: int) -> None:
    """Raises unless every micro-batch divides over the devices that share a batch."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if utterances % (parts * accumulate):
        raise ValueError(
            f"data.bucket_utterances = {utterances}: must be a multiple of mesh.data x mesh.fsdp x "
            f"train.accumulate = {parts} x {accumulate}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


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


