"""Eight virtual CPU devices for every test, so that sharding is tested everywhere."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the suite's time is compiling: code need not be fast here.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)
