"""Train Conformer-transducers in JAX; `asr_jax.load(DIR)` returns a trained one.

Importing the package loads nothing else, so that asr_jax.losses needs JAX alone.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asr_jax.inference.model import load as load


def __getattr__(name: str) -> object:
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from asr_jax.inference.model import load

    return load
