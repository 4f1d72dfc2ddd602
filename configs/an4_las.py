"""AN4 with Listen, Attend and Spell (arXiv 1508.01211): quickstart.py with an attention decoder.

    asr-jax train configs/an4_las.py

One core of a shared AMD EPYC with other work on it, Python 3.12, JAX 0.12.0, seed 0, in 15 minutes:
WER 37.0 % on dev, 22.5 % on test, with the beam search of 4 and the CTC weight set below. Batches
had the stated buckets of docs/benchmarks.md.

All other values are as in quickstart.py.
"""

import runpy
from dataclasses import replace
from pathlib import Path

from asr_jax.config import DecoderConfig, DecodingConfig

base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]
config = replace(
    base,
    objective=replace(base.objective, kind="attention"),
    # As wide as the encoder.
    decoder=DecoderConfig(layers=2, width=64, heads=4, feedforward_factor=4, dropout=0.1),
    # ESPnet's usual weight.
    decoding=DecodingConfig(beam=4, ctc_weight=0.3),
)
