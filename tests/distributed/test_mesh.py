"""Devices on several slices: which mesh axes cross slices."""

from typing import Any

import numpy as np
import pytest

from asr_jax.config import MeshConfig
from asr_jax.distributed.mesh import make_mesh


class Device:
    """A device of a slice (TPU) or host (GPU), of a platform without topology."""

    platform = device_kind = "cpu"

    def __init__(self, number: int, slice_index: int):
        self.id, self.slice_index = number, slice_index
        self.process_index = slice_index


def on_slices(slices: int, each: int) -> list[Any]:
    # Interleaved, so that their order alone would mix the slices.
    return [Device(number, number % slices) for number in range(slices * each)]


def slices_along(axis: int, config: MeshConfig, devices: list[Any]) -> int:
    """The most slices that one line of devices along the axis touches."""
    indices = np.vectorize(lambda device: device.slice_index)(make_mesh(config, devices).devices)
    lines = np.moveaxis(indices, axis, -1).reshape(-1, indices.shape[axis])
    return max(len(set(line)) for line in lines)


@pytest.mark.parametrize(
    "slices, each, config, touched",
    [
        (2, 4, MeshConfig(), (2, 1, 1)),
        (2, 4, MeshConfig(fsdp=4), (2, 1, 1)),
        (2, 4, MeshConfig(fsdp=2, model=2), (2, 1, 1)),
        (4, 2, MeshConfig(data=2, fsdp=4), (2, 2, 1)),
        (2, 4, MeshConfig(fsdp=8), (1, 2, 1)),
        (3, 4, MeshConfig(fsdp=2), (3, 1, 1)),
        (1, 8, MeshConfig(fsdp=2, model=2), (1, 1, 1)),
    ],
)
def test_only_the_outermost_axes_leave_a_slice(slices, each, config, touched):
    devices = on_slices(slices, each)
    assert tuple(slices_along(axis, config, devices) for axis in range(3)) == touched
    mesh = make_mesh(config, devices)
    assert mesh.axis_names == ("data", "fsdp", "model")
    assert {device.id for device in mesh.devices.flat} == set(range(slices * each))


@pytest.mark.parametrize(
    "devices, config, message",
    [
        (on_slices(2, 4), MeshConfig(model=8), "mesh.data x mesh.fsdp = 1 x 1: must split over"),
        (on_slices(2, 4)[:6] + [Device(6, 2)], MeshConfig(), r"have \[1, 3, 3\] devices"),
    ],
)
def test_mesh_that_does_not_fit_the_slices_is_rejected(devices, config, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(config, devices)
