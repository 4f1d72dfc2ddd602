"""The devices of a run as a mesh, and batches spread over it."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int64

from asr_jax.config import MeshConfig

Result = TypeVar("Result")
Tree = TypeVar("Tree")
# The axes that split a batch's rows; the third, model, splits the widths of matrices.
BATCH = P(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: Sequence[Any]) -> Mesh:
    """Return the devices arranged data x fsdp x model.

    The network is slower between slices (of TPUs; with GPUs, hosts or what NVLink connects). So the
    data axis crosses slices first, fsdp where data has too few parts, and model never.
    """
    data = config.data
    if data == -1:
        data = max(1, len(devices) // (config.fsdp * config.model))
    if data * config.fsdp * config.model != len(devices):
        raise ValueError(
            f"mesh.data x mesh.fsdp x mesh.model = {data} x {config.fsdp} x {config.model}: "
            f"must be the number of devices, {len(devices)}"
        )
    shape, names = (data, config.fsdp, config.model), ("data", "fsdp", "model")
    types = (AxisType.Auto,) * 3
    slices = Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(slices) == 1:
        return jax.make_mesh(shape, names, axis_types=types, devices=devices)
    if len(set(slices.values())) > 1:
        raise ValueError(
            f"slices (TPU) or hosts (GPU) have {sorted(slices.values())} devices: must be equal"
        )
    data_slices = math.gcd(data, len(slices))
    fsdp_slices = len(slices) // data_slices
    if config.fsdp % fsdp_slices:
        raise ValueError(
            f"mesh.data x mesh.fsdp = {data} x {config.fsdp}: must split over the {len(slices)} "
            "slices (TPU) or hosts (GPU), as mesh.model stays inside one"
        )
    arranged = mesh_utils.create_hybrid_device_mesh(
        (data // data_slices, config.fsdp // fsdp_slices, config.model),
        (data_slices, fsdp_slices, 1),
        devices,
        allow_split_physical_axes=True,
    )
    return Mesh(arranged, names, axis_types=types)


def utterance_shards(mesh: Mesh) -> int:
    """Return the number of parts into which the devices split a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(utterances: int, mesh: Mesh, accumulate: int) -> None:
    """Raise ValueError unless every micro-batch splits evenly over the devices of a batch."""
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if utterances % (data * fsdp * accumulate):
        raise ValueError(
            f"data.bucket_utterances = {utterances}: must be a multiple of mesh.data x mesh.fsdp x "
            f"train.accumulate = {data} x {fsdp} x {accumulate}"
        )


def over_rows(function: Callable[..., Result], mesh: Mesh) -> Callable[..., Result]:
    """Return a function of batches that each device runs on its own rows.

    Use it where the compiler would gather the rows, as XLA of JAX 0.10 does before a Fourier
    transform.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=BATCH, out_specs=BATCH)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def local_rows(mesh: Mesh, rows: int) -> Int64[np.ndarray, " R"]:
    """Return which of a batch's `rows` are on this process's devices, in order."""
    parts = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))


def on_devices(batch: Tree, mesh: Mesh) -> Tree:
    """Return global arrays, given a tree of arrays that hold this process's `local_rows`."""
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    parts = utterance_shards(mesh)

    def place(local: np.ndarray) -> jax.Array:
        rows = len(local) // len(local_rows(mesh, parts)) * parts
        numbers = local_rows(mesh, rows)

        def shard(index) -> np.ndarray:
            return local[np.searchsorted(numbers, np.arange(rows)[index[0]])]

        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, shard)

    # JAX treats what a callback returns as an implicit transfer.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(place, batch)
