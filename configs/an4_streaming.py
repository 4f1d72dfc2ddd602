"""AN4 for recognition while one speaks: quickstart.py, causal and with attention in chunks.

    asr-jax train configs/an4_streaming.py
    asr-jax evaluate runs/an4_streaming --data samples/an4/test --chunk-ms 640

One core of a shared AMD EPYC with other work on it, Python 3.11, JAX 0.10.2, seed 0, in 11 minutes:
WER 19.8 % on dev, 10.9 % on test; in chunks of 640 ms 21.8 % and 11.3 %.

What is not explained here is quickstart.py's.
"""

import runpy
from dataclasses import replace
from pathlib import Path

base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]
config = replace(
    base,
    # A stream is not known as a whole.
    features=replace(base.features, normalization="none"),
    # Ours: 8 to 32 frames, as in arXiv 2012.05481 also none at all.
    encoder=replace(base.encoder, chunk_ms=(0.0, 320.0, 640.0, 1280.0), left_chunks=4),
)
