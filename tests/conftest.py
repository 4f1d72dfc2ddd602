"""Eight simulated CPU devices for every test, so that sharding is tested everywhere."""

import importlib.metadata
import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is compilation, so its speed matters more than that of the programs.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
if importlib.metadata.version("jax").startswith("0.10."):
    # The fusion emitters take twice as long to compile; later versions have no alternative.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jaxtyping
import pytest


@pytest.fixture(scope="module")
def sizes_may_be_symbols():
    """Allow the symbolic sizes of exported programs where annotations say int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
