"""Transducer losses: JAX functions of arrays, independent of the rest of this package."""

from asr_jax.losses._alignment import Alignment, transducer_alignment
from asr_jax.losses._rnnt import rnnt_loss
from asr_jax.losses._tdt import tdt_loss
from asr_jax.losses._transducer import transducer_loss

__all__ = ["Alignment", "rnnt_loss", "tdt_loss", "transducer_alignment", "transducer_loss"]
