"""AN4 for streaming recognition: quickstart.py, causal and with attention in chunks.

    asr-jax train configs/an4_streaming.py
    asr-jax evaluate runs/an4_streaming --data samples/an4/test --chunk-ms 640

One core of a shared Intel Xeon, Python 3.12, JAX 0.12, mean of seeds 0, 1, 2, 6 core-minutes each:
WER 18.4 % on dev, 10.8 % on test; in chunks of 640 ms 18.9 % and 12.1 %. Batches had the stated
buckets of docs/benchmarks.md.

All other values are as in quickstart.py.
"""

import runpy
from dataclasses import replace
from pathlib import Path

base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]
config = replace(
    base,
    # The statistics of a whole utterance are not known while it is streamed.
    features=replace(base.features, normalization="none"),
    # Our choice: chunks of 8 to 32 frames and, as in arXiv 2012.05481, also whole utterances.
    encoder=replace(base.encoder, chunk_ms=(0.0, 320.0, 640.0, 1280.0), left_chunks=4),
)
