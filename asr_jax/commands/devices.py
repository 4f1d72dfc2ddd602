"""The processor as several devices, chosen before JAX looks for any."""

import os

import jax

from asr_jax.config import Config


def prepare_devices(config: Config) -> None:
    """Without an accelerator, makes as many devices of the processor as the mesh asks for.

    With mesh.data = -1 these are two where there are two cores and the batches divide: at the sizes
    one trains on a processor, XLA keeps one core busy per device.
    """
    mesh, accumulate = config.mesh, config.train.accumulate
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    split = mesh.fsdp * mesh.model
    data = mesh.data
    if data == -1 and mesh.cpu_devices:
        data = max(1, mesh.cpu_devices // split)
    elif data == -1:
        rows = 2 * mesh.fsdp * accumulate
        divide = all(n % rows == 0 for n in config.data.bucket_utterances)
        data = 2 if divide and (os.cpu_count() or 1) > 1 else 1
    jax.config.update("jax_num_cpu_devices", data * split)
