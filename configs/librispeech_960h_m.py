"""Conformer-M on the 960 hours of LibriSpeech. Not run: no time and no WER to report.

    asr-jax train configs/librispeech_960h_m.py
    asr-jax evaluate runs/librispeech_960h_m --data data/librispeech/test-other

30.3 million parameters (30.7 in the paper). What it does not change, folders, hardware and the
sources in brackets are librispeech_960h_l.py's.
Others reach, without a language model, on test-clean / test-other: 2.83 / 6.75 (icefall).
"""

import runpy
from dataclasses import replace
from pathlib import Path

base = runpy.run_path(str(Path(__file__).with_name("librispeech_960h_l.py")))["config"]
config = replace(
    base,
    # [paper]; channels as wide as the blocks [nemo].
    encoder=replace(base.encoder, layers=16, width=256, heads=4, subsampling_channels=256),
    # Peak ours: as 1 / sqrt(width) [icefall] [paper].
    optimizer=replace(base.optimizer, peak_learning_rate=1.1e-3),
)
