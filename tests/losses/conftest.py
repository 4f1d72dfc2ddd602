"""Small problems with ragged lengths, shared by the tests of the losses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies


class Problem(NamedTuple):
    encoded: jax.Array
    predicted: jax.Array
    kernel: jax.Array
    bias: jax.Array
    labels: jax.Array
    encoded_lengths: jax.Array
    label_lengths: jax.Array

    @property
    def floats(self):
        return self[:4]

    @property
    def integers(self):
        return self[4:]

    def row(self, b):
        """Utterance b alone, without its padding, as NumPy arrays."""
        t, u = int(self.encoded_lengths[b]), int(self.label_lengths[b])
        cut = self.encoded[b, :t], self.predicted[b, : u + 1], *self[2:4], self.labels[b, :u]
        return tuple(np.asarray(x) for x in cut)


@pytest.fixture(scope="session")
def problem():
    def make(
        frame_lengths=(7, 4, 1, 2),
        label_lengths=(3, 0, 2, 5),
        *,
        vocabulary=6,
        width=4,
        frames=8,
        seed=0,
        blank_id=0,
    ):
        rng = np.random.default_rng(seed)
        batch, labels = len(frame_lengths), max(label_lengths)
        normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
        symbols = rng.integers(0, vocabulary - 1, (batch, labels))
        return Problem(
            normal(batch, frames, width),
            normal(batch, labels + 1, width),
            normal(width, vocabulary),
            normal(vocabulary),
            jnp.asarray(symbols + (symbols >= blank_id), jnp.int32),
            jnp.asarray(frame_lengths, jnp.int32),
            jnp.asarray(label_lengths, jnp.int32),
        )

    return make


HOPPER = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32
 shared_memory_per_block: 49152 shared_memory_per_core: 233472 threads_per_core_limit: 2048
 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
 clock_rate_ghz: 1.98 device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
 cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
 registers_per_core_limit: 65536 registers_per_block_limit: 65536 }
 platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } runtime_version { major: 13 }
 device_description_str: "NVIDIA H100 80GB HBM3" """


@pytest.fixture(scope="session")
def hopper():
    """A mesh of one H100 to compile for, without one."""
    try:
        topology = topologies.get_topology_desc(
            "", platform="cuda", target_config=HOPPER, topology="1x1x1"
        )
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"jax-cuda13-plugin and jax-cuda13-pjrt are not installed: {error}")
    return topologies.make_mesh(topology, (1,), ("x",))
