"""ResidualTransformer on the 960 hours of LibriSpeech, under 200 MB. Not run: no time, no WER.

    asr-jax train configs/librispeech_960h_residual.py
    asr-jax evaluate runs/librispeech_960h_residual --data data/librispeech/test-other

34.6 million parameters: 138 MB in float32, 36 MB in int8. All other values, the folders, the
hardware and the sources in brackets are those of librispeech_960h_l.py.

[residual]  arXiv 2310.02489, section 4: 18 layers of 512, K = 3, R = 16
"""

import runpy
from dataclasses import replace
from pathlib import Path

base = runpy.run_path(str(Path(__file__).with_name("librispeech_960h_l.py")))["config"]
config = replace(
    base,
    encoder=replace(
        base.encoder, kind="transformer", layers=18, shared_layers=3, residual_rank=16
    ),  # [residual]
)
