"""Requirements of the kernels of `_mosaic_gpu`, checked without importing Pallas."""

from collections.abc import Iterable

import jax
import numpy as np

LARGEST_WIDTH = 640  # shared memory holds two tiles of 64 rows and pieces of the kernel


def obstacle(dtypes: Iterable, width: int, device) -> str | None:
    """Return why the kernels cannot run on this `jax.Device`, or None if they can.

    dtypes: of encoded, predicted and kernel. width: D.
    """
    if jax.__version_info__ < (0, 11):
        return f"JAX {jax.__version__} is older than 0.11"
    if getattr(device, "compute_capability", None) != "9.0":
        return f"{device.device_kind} is not a Hopper GPU (compute capability 9.0)"
    if names := {np.dtype(dtype).name for dtype in dtypes} - {"bfloat16"}:
        return f"inputs of {', '.join(sorted(names))}: only bfloat16 is supported"
    if width % 64 or not 0 < width <= LARGEST_WIDTH:
        return f"width {width} is not a multiple of 64 up to {LARGEST_WIDTH}"
    return None
