"""Transducer losses: JAX functions of arrays, which need nothing else of this package."""

from asr_jax.losses._rnnt import rnnt_loss
from asr_jax.losses._transducer import transducer_loss

__all__ = ["rnnt_loss", "transducer_loss"]
