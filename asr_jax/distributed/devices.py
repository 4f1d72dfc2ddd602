"""The processor as several devices, chosen before JAX looks for any."""

import math
import os
from collections import Counter

import jax

from asr_jax.config import MeshConfig


def prepare_devices(mesh: MeshConfig, *, processes: int = 1) -> None:
    """Without an accelerator, makes as many devices of the processor as the mesh asks for.

    Of several processes each makes its share of them. Raises ValueError where JAX_PLATFORMS asks
    for an accelerator that is not there, and where the processes have not equally many devices.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        devices = math.prod(max(1, axis) for axis in (mesh.data, mesh.fsdp, mesh.model))
        jax.config.update("jax_num_cpu_devices", max(1, devices // processes))
    try:
        counts = Counter(device.process_index for device in jax.devices())
    except (RuntimeError, AssertionError) as error:
        # Only where the environment asks for one; else JAX takes the processor. It asserts where
        # the package for such accelerators is not installed.
        said = str(error).split("\n")[0] or "JAX has no package for it"
        raise ValueError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: no accelerator found ({said})"
        ) from error
    for process, count in counts.items():
        if count != counts[0]:
            raise ValueError(
                f"process {process} has {count} devices, process 0 has {counts[0]}: must be as "
                "many on all hosts; is one missing, or, of processors, another mesh asked for?"
            )
