"""The language of AN4's transcripts, for fusion with quickstart.py's recogniser.

    asr-jax train configs/an4_language_model.py --tokenizer.model runs/quickstart/tokenizer.model

One core of a shared Intel Xeon with other work on it, Python 3.12, JAX 0.12.0, seed 0, in a minute:
perplexity on dev 2.74 by piece, 18.3 by word. Fused with quickstart.py's recogniser, whose internal
language model is subtracted, it takes the WER on dev from 18.3 to 14.3 % (docs/decoding.md).

What is not explained here is quickstart.py's, whose pieces it must have; data may also be texts, a
sentence a line, in a file that ends in .txt or .txt.gz.
"""

import runpy
from dataclasses import replace
from pathlib import Path

from asr_jax.config import (
    CheckpointConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PredictorConfig,
    TrainConfig,
)

base = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["config"]
config = replace(
    base,
    # Transcripts alone; they go to buckets by their labels, small ones as there are but 806.
    data=replace(base.data, test="", bucket_utterances=(32, 32, 32)),
    # By perplexity on dev, of widths 128 and 256 and dropout 0.3 and 0.5; with 0.3 it rises again
    # from step 500 on.
    predictor=PredictorConfig(kind="lstm", embedding_width=64, width=128, dropout=0.5),
    objective=ObjectiveConfig(kind="language_model"),
    # Half of quickstart.py's rate; neither this nor the average was tuned.
    optimizer=OptimizerConfig(
        kind="muon", peak_learning_rate=4e-3, warmup_steps=50, ema_decay=0.98
    ),
    train=TrainConfig(steps=1000, evaluate_every_steps=100),
    checkpoint=CheckpointConfig(every_steps=100),
)
