"""Accelerators to compile for, also without having them, and their published rates.

Sources: NVIDIA's data sheets of H100 SXM, H200 SXM and A100 SXM, Google's pages on Cloud TPU v5e
and v6e. Rates are peaks in one direction. Memory is what JAX gives a program.
"""

import re
from typing import NamedTuple, Protocol, runtime_checkable

import jax
from jax.experimental import topologies


@runtime_checkable
class Device(Protocol):
    """The part of `jax.Device` that is used here; type checkers do not know `jax.Device`."""

    device_kind: str
    platform: str

    def memory_stats(self) -> dict[str, int] | None: ...


class Accelerator(NamedTuple):
    """A device. Rates: dense bfloat16 TFLOP/s, and GB/s of memory and to other devices."""

    kind: str
    """Its name as `device_kind`."""
    memory_bytes: float
    bfloat16_tflops: float
    memory_gb_per_second: float
    link_gb_per_second: float
    target_config: str = ""
    """XLA's description of a GPU; empty for a TPU."""


class _Architecture(NamedTuple):
    """Properties that all GPUs of an architecture share."""

    tflops: float
    link_gb_per_second: float
    multiprocessors: int
    fpus: int
    shared_kb: int
    l2_mb: int
    clock_ghz: float
    capability: str


_HOPPER = _Architecture(
    tflops=989.0,
    link_gb_per_second=450.0,
    multiprocessors=132,
    fpus=128,
    shared_kb=228,
    l2_mb=50,
    clock_ghz=1.98,
    capability="major: 9 feature_extension: ACCELERATED_FEATURES",
)
_A100 = _Architecture(
    tflops=312.0,
    link_gb_per_second=300.0,
    multiprocessors=108,
    fpus=64,
    shared_kb=164,
    l2_mb=40,
    clock_ghz=1.41,
    capability="major: 8",
)


def _gpu(kind: str, gpu: _Architecture, *, gb: float, gb_per_second: float) -> Accelerator:
    config = f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
 shared_memory_per_block: 49152 shared_memory_per_core: {1024 * gpu.shared_kb}
 threads_per_core_limit: 2048 core_count: {gpu.multiprocessors} fpus_per_core: {gpu.fpus}
 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
 memory_bandwidth: {gb_per_second * 1e9:.0f} l2_cache_size: {gpu.l2_mb * 2**20}
 clock_rate_ghz: {gpu.clock_ghz} device_memory_size: {gb * 1e9:.0f}
 shared_memory_per_block_optin: {1024 * (gpu.shared_kb - 1)}
 cuda_compute_capability {{ {gpu.capability} }}
 registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
 platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 13 }}
 device_description_str: "{kind}" """
    # By default JAX uses three quarters of a GPU's memory.
    memory_bytes, link = 0.75 * gb * 1e9, gpu.link_gb_per_second
    return Accelerator(kind, memory_bytes, gpu.tflops, gb_per_second, link, config)


ACCELERATORS = {
    "h100": _gpu("NVIDIA H100 80GB HBM3", _HOPPER, gb=85.0, gb_per_second=3352.0),
    "h200": _gpu("NVIDIA H200", _HOPPER, gb=150.0, gb_per_second=4800.0),
    "a100-40": _gpu("NVIDIA A100-SXM4-40GB", _A100, gb=42.5, gb_per_second=1555.0),
    "a100-80": _gpu("NVIDIA A100-SXM4-80GB", _A100, gb=85.0, gb_per_second=2039.0),
    "v5e": Accelerator("TPU v5 lite", 15.75 * 2**30, 197.0, 819.0, 200.0),
    "v6e": Accelerator("TPU v6 lite", 31.25 * 2**30, 918.0, 1640.0, 448.0),
}
_SLICES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}


def target_devices(target: str) -> tuple[list[Device], Accelerator]:
    """Return devices to compile for, which this machine need not have, and their rates.

    target: a name in ACCELERATORS, or NAME-COUNT.

    Raises:
        ValueError: there is no such target, or its compiler is not installed.
    """
    name, count = target, 1
    if name not in ACCELERATORS and (counted := re.fullmatch(r"(.+)-(\d+)", target)):
        name, count = counted[1], int(counted[2])
    if name not in ACCELERATORS or count == 0:
        raise ValueError(
            f"--target {target}: must be one of {', '.join(ACCELERATORS)}; append -COUNT for "
            "several devices"
        )
    accelerator = ACCELERATORS[name]
    try:
        if accelerator.target_config:
            packages = f"--no-deps jax-cuda13-plugin=={jax.__version__} "
            packages += f"jax-cuda13-pjrt=={jax.__version__}"
            topology = topologies.get_topology_desc(
                "",
                platform="cuda",
                target_config=accelerator.target_config,
                topology=f"1x1x{count}",
            )
        else:
            packages = f"'jax[tpu]=={jax.__version__}'"
            if count not in _SLICES:
                raise ValueError(
                    f"--target {target}: the number of devices must be one of {list(_SLICES)}"
                )
            topology = topologies.get_topology_desc(f"{name}:{_SLICES[count]}", platform="tpu")
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        # The TPU compiler also fails if it is installed but serves another process.
        if isinstance(error, NotImplementedError) or "not installed" in reason:
            reason = f"its compiler is not installed; pip install {packages} ({reason})"
        raise ValueError(f"--target {target}: {reason}") from None
    return list(topology.devices), accelerator


def accelerator_of(device: Device) -> Accelerator | None:
    """Return the published rates of a device, if they are known."""
    return next((a for a in ACCELERATORS.values() if a.kind == device.device_kind), None)
