"""Memory of the loss and its gradients, compiled for accelerators that this machine does not have.

The compilers come with libtpu and with JAX's CUDA plugins; without these the tests are skipped.
Nothing is run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from asr_jax.losses import transducer_loss

pytestmark = pytest.mark.slow
# Batch, frames, labels, vocabulary, width, dtype; and the limit of temporaries in megabytes.
SHAPES = {
    "public": ((30, 437, 101, 500, 512, "float32"), 130),
    "b32": ((32, 400, 100, 1024, 512, "bfloat16"), 190),
    "nemo": ((32, 400, 128, 1024, 640, "bfloat16"), 190),
    "large vocabulary": ((16, 188, 60, 8198, 640, "bfloat16"), 110),
    "1024 x 40 s": ((1024, 1000, 200, 500, 512, "bfloat16"), 250),
}
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@pytest.fixture(scope="module", params=["v5e:2x2", "v6e:2x2"])
def tpu(request):
    pytest.importorskip("libtpu", reason="libtpu is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        topology = topologies.get_topology_desc(platform="tpu", topology_name=request.param)
        yield jax.sharding.Mesh(np.array(topology.devices[:1]), ("x",))


def megabytes(mesh, sizes, **options):
    """Return the megabytes of temporaries of losses and all gradients."""
    batch, frames, labels, vocabulary, width, dtype = sizes
    place = jax.NamedSharding(mesh, jax.P())
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    integers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place)
    joint = floats(batch, frames, width), floats(batch, labels + 1, width)
    output = floats(width, vocabulary), floats(vocabulary)
    lengths = integers(batch, labels), integers(batch), integers(batch)
    total = lambda *arrays: transducer_loss(*arrays, **options).sum()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        step = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3)))
        compiled = step.lower(*joint, *output, *lengths).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


@pytest.mark.parametrize("name", SHAPES)
def test_memory_on_a_hopper_gpu(hopper, name):
    sizes, most = SHAPES[name]
    temporaries = megabytes(hopper, sizes)
    print(f"sm_90a, {name}: {temporaries:.0f} MB")
    assert temporaries < most


@pytest.mark.parametrize("name", ["public", "b32"])
def test_memory_on_a_tpu(tpu, name):
    sizes, most = SHAPES[name]
    temporaries = megabytes(tpu, sizes)
    print(f"{tpu.devices.flat[0].device_kind}, {name}: {temporaries:.0f} MB")
    assert temporaries < most
