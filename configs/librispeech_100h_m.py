"""Conformer-M on the 100 hours of LibriSpeech's train-clean-100. Not run: no time and no WER.

    asr-jax train configs/librispeech_100h_m.py
    asr-jax evaluate runs/librispeech_100h_m --data data/librispeech/test-other

30.3 million parameters. All other values, the hardware and the other sources in brackets are
those of librispeech_960h_l.py. WER on test-clean / test-other reported elsewhere, without a
language model: 6.5 / 17.3 (ESPnet, attention and CTC), 6.73 / 17.79 (icefall,
pruned_transducer_stateless6).

[icefall-100h]  k2-fsa/icefall: RESULTS-100hours.md, transducer_stateless_multi_datasets
"""

import runpy
from dataclasses import replace
from pathlib import Path

base = runpy.run_path(str(Path(__file__).with_name("librispeech_960h_l.py")))["config"]
config = replace(
    base,
    data=replace(
        base.data,
        train="data/librispeech/train-clean-100",
        more_train=(),
        batch_seconds=600.0,  # as two devices with 300 s each [icefall-100h]
    ),
    # [paper]; channels as wide as the blocks [nemo].
    encoder=replace(base.encoder, layers=16, width=256, heads=4, subsampling_channels=256),
    # Our peak: 5e-4 at width 512, scaled by 1 / sqrt(width). Warm-up [icefall].
    optimizer=replace(base.optimizer, peak_learning_rate=7e-4, warmup_steps=8000),
    # About 180 passes: 60 epochs of every recording at three speeds [icefall-100h].
    train=replace(base.train, steps=120_000),
)
