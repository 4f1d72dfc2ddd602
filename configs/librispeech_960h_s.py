"""Conformer-S on the 960 hours of LibriSpeech. Not run: no time and no WER to report.

    asr-jax train configs/librispeech_960h_s.py
    asr-jax evaluate runs/librispeech_960h_s --data data/librispeech/test-other

9.9 million parameters (10.3 in the paper). All other values, the folders, the hardware and the
sources in brackets are those of librispeech_960h_l.py. WER on test-clean / test-other reported
elsewhere, without a language model: 2.7 / 6.3 (paper).
"""

import runpy
from dataclasses import replace
from pathlib import Path

base = runpy.run_path(str(Path(__file__).with_name("librispeech_960h_l.py")))["config"]
config = replace(
    base,
    # [paper]; channels as wide as the blocks [nemo].
    encoder=replace(base.encoder, layers=16, width=144, heads=4, subsampling_channels=144),
    predictor=replace(base.predictor, embedding_width=320, width=320),  # [paper]
    joint=replace(base.joint, width=320),  # [nemo]
    # Our peak, scaled by 1 / sqrt(width) as in [icefall] [paper]. No decay [nemo].
    optimizer=replace(base.optimizer, peak_learning_rate=1.5e-3, weight_decay=0.0),
)
