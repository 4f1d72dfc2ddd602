"""Conformer-M on the 960 hours of LibriSpeech. Not run: no time and no WER to report.

    asr-jax train configs/librispeech_960h_m.py
    asr-jax evaluate runs/librispeech_960h_m --data data/librispeech/test-other

30.3 million parameters (30.7 in the paper). All other values, the folders, the hardware and the
sources in brackets are those of librispeech_960h_l.py. WER on test-clean / test-other reported
elsewhere, without a language model: 2.83 / 6.75 (icefall).
"""

import runpy
from dataclasses import replace
from pathlib import Path

base = runpy.run_path(str(Path(__file__).with_name("librispeech_960h_l.py")))["config"]
config = replace(
    base,
    # [paper]; channels as wide as the blocks [nemo].
    encoder=replace(base.encoder, layers=16, width=256, heads=4, subsampling_channels=256),
    # Our peak, scaled by 1 / sqrt(width) as in [icefall] [paper].
    optimizer=replace(base.optimizer, peak_learning_rate=1.1e-3),
)
