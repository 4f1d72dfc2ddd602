"""Eight virtual CPU devices for every test, so that sharding is tested everywhere."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
