"""A language model of AN4's transcripts, for fusion with quickstart.py's recognizer.

    asr-jax train configs/an4_language_model.py --tokenizer.model runs/quickstart/tokenizer.model

One core of a shared Intel Xeon with other work on it, Python 3.12, JAX 0.12.0, seed 0, in a minute:
perplexity on dev 2.74 per piece, 18.3 per word. Fusion with quickstart.py's recognizer, whose
internal language model is subtracted, lowers the WER on dev from 18.3 to 14.3 % (docs/decoding.md).

It must have the pieces of quickstart.py, whose values it keeps where no other is set. Its data may
also be text files with a sentence per line, whose names end in .txt or .txt.gz.
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
    # Only transcripts. A label counts as 0.1 s: batches have about 900 labels, as there are only
    # 806 transcripts.
    data=replace(base.data, test="", batch_seconds=90.0),
    # Chosen by perplexity on dev among widths 128 and 256 and dropout 0.3 and 0.5. With 0.3 the
    # perplexity rises again from step 500 on.
    predictor=PredictorConfig(kind="lstm", embedding_width=64, width=128, dropout=0.5),
    objective=ObjectiveConfig(kind="language_model"),
    # Half of quickstart.py's rate. Neither the rate nor ema_decay was tuned.
    optimizer=OptimizerConfig(
        kind="muon", peak_learning_rate=4e-3, warmup_steps=50, ema_decay=0.98
    ),
    train=TrainConfig(steps=1000, evaluate_every_steps=100),
    checkpoint=CheckpointConfig(every_steps=100),
)
