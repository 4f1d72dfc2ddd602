"""Eight virtual CPU devices for every test, so that sharding is tested everywhere."""

import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is compiling: code need not be fast here.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if importlib.metadata.version("jax").startswith("0.10."):
    # Its newer way to compile loops takes twice as long; later versions have no other.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jaxtyping
import pytest


@pytest.fixture(scope="module")
def sizes_may_be_symbols():
    """Annotations say int, which a size that an exported program leaves open is not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
