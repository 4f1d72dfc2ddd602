"""FastConformer-L on the 960 hours of LibriSpeech. Not run: no time and no WER to report.

    asr-jax train configs/librispeech_960h_fast_l.py
    asr-jax evaluate runs/librispeech_960h_fast_l --data data/librispeech/test-other

114.6 million parameters (about 114 in the paper). All other values, the folders, the hardware and
the other sources in brackets are those of librispeech_960h_l.py.

[fast] arXiv 2305.05084, section 2.1
[nemo] NVIDIA/NeMo: examples/asr/conf/fastconformer/fast-conformer_transducer_bpe.yaml
"""

import runpy
from dataclasses import replace
from pathlib import Path

base = runpy.run_path(str(Path(__file__).with_name("librispeech_960h_l.py")))["config"]
config = replace(
    base,
    # Subsampling by 8, separable with 256 channels, kernel of 9 frames [fast].
    encoder=replace(
        base.encoder,
        subsampling="separable",
        subsampling_factor=8,
        subsampling_channels=256,
        kernel_frames=9,
    ),
    predictor=replace(base.predictor, kind="lstm"),  # [nemo]
)
