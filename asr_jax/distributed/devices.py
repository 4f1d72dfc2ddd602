"""The CPU as several devices, configured before JAX looks for any."""

import math
import os
from collections import Counter

import jax

from asr_jax.config import MeshConfig


def prepare_devices(mesh: MeshConfig, *, processes: int = 1) -> None:
    """On a machine without an accelerator, simulate as many CPU devices as the mesh needs.

    Each of several processes simulates its share of them. Raises ValueError where JAX_PLATFORMS
    asks for an accelerator that JAX does not find, and where the processes differ in their number
    of devices.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        devices = math.prod(max(1, axis) for axis in (mesh.data, mesh.fsdp, mesh.model))
        jax.config.update("jax_num_cpu_devices", max(1, devices // processes))
    try:
        counts = Counter(device.process_index for device in jax.devices())
    except (RuntimeError, AssertionError) as error:
        # JAX falls back to the CPU unless the environment asks for an accelerator. It asserts where
        # the package for such accelerators is not installed.
        reason = str(error).split("\n")[0] or "JAX has no package for it"
        raise ValueError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: no accelerator found ({reason})"
        ) from error
    for process, count in counts.items():
        if count != counts[0]:
            raise ValueError(
                f"process {process} has {count} devices, process 0 has {counts[0]}: every host "
                "must have the same number of devices (is a device missing, or does --mesh differ "
                "on a CPU host?)"
            )
