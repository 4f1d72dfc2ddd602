"""The devices of a run as a mesh, and batches spread over it."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int64

from asr_jax.config import MeshConfig

# The axes that share a batch's rows; the third, model, shares the widths of matrices.
BATCH = P(("data", "fsdp"))


def make_mesh(config: MeshConfig, devices: Sequence[Any]) -> Mesh:
    """The devices, arranged data x fsdp x model.

    Between slices (of TPUs; of GPUs: hosts, or what NVLink connects) the network is slower. The
    data axis goes over them, fsdp where data has too few parts, model never.
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
            f"slices (TPU) or hosts (GPU) have {sorted(slices.values())} devices: must be as many "
            "on all"
        )
    over_data = math.gcd(data, len(slices))
    over_fsdp = len(slices) // over_data
    if config.fsdp % over_fsdp:
        raise ValueError(
            f"mesh.data x mesh.fsdp = {data} x {config.fsdp}: must divide over the {len(slices)} "
            "slices (TPU) or hosts (GPU), as mesh.model stays inside one"
        )
    arranged = mesh_utils.create_hybrid_device_mesh(
        (data // over_data, config.fsdp // over_fsdp, config.model),
        (over_data, over_fsdp, 1),
        devices,
        allow_split_physical_axes=True,
    )
    return Mesh(arranged, names, axis_types=types)


def check_batch(utterances: int, mesh: Mesh, accumulate: int) -> None:
    """Raises unless every micro-batch divides over the devices that share a batch."""
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    if utterances % (data * fsdp * accumulate):
        raise ValueError(
            f"data.bucket_utterances = {utterances}: must be a multiple of mesh.data x mesh.fsdp x "
            f"train.accumulate = {data} x {fsdp} x {accumulate}"
        )


def over_rows(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """The same function of batches, each device running it on its own rows.

    For what the compiler would gather: XLA of JAX 0.10 does so before a Fourier transform.
    """
    return jax.shard_map(function, mesh=mesh, in_specs=BATCH, out_specs=BATCH)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, BATCH)


def local_rows(mesh: Mesh, rows: int) -> Int64[np.ndarray, " R"]:
    """Which rows of a batch of so many lie on this process's devices, in order."""
    parts = batch_sharding(mesh).addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))


def on_devices(batch: Any, mesh: Mesh) -> Any:
    """Arrays of a batch's `local_rows`, of each process its own, as global arrays."""
    sharding = batch_sharding(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(batch, sharding)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]

    def place(local: np.ndarray) -> jax.Array:
        here = local_rows(mesh, parts)
        rows = len(local) // len(here) * parts
        here = local_rows(mesh, rows)
        part = lambda index: local[np.searchsorted(here, np.arange(rows)[index[0]])]
        return jax.make_array_from_callback((rows, *local.shape[1:]), sharding, part)

    # JAX takes what a callback gives for a transfer that nobody asked for.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(place, batch)
