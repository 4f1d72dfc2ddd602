"""Recordings of your own, 1 to 100 hours: a Conformer-transducer of about ten million parameters.

    asr-jax train configs/own_data.py --run runs/mine --data.train my/train

Nothing here depends on the device. Add the options of the row that is nearest to your hours:

hours | options
---|---
1 | `--train.steps 6000 --data.batch-seconds 120 --encoder.dropout 0.2 --optimizer.warmup-steps 300`
10 | `--train.steps 30000 --data.batch-seconds 240 --encoder.dropout 0.15`
100 | `--train.steps 100000 --data.batch-seconds 480 --encoder.dropout 0.1`

Further datasets follow --data.more-train. Without data.dev, one part in twenty of data.train is
held out to choose the best checkpoint by; without data.test, the run ends with a report on it.
An accelerator trains faster with --train.compute-dtype bfloat16.

No row was run to its end. With the first row, but 400 steps of 60 s, 12 minutes of spoken digits
have a WER of 40.9 % on what is held out, 67.6 % on another speaker; after 150 steps, 48 minutes of
LibriSpeech have 100 %. The digits' loss rose where the learning rate was above 4e-3: where yours
does, lower --optimizer.peak-learning-rate (docs/benchmarks.md, Recordings of one's own).

Sources of the values (fields that are not set have the defaults of asr_jax/config.py):
[conformer] arXiv 2005.08100, table 1, size S    [an4] configs/an4.py    [muon] arXiv 2502.16982
"""

from asr_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EncoderConfig,
    JointConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PredictorConfig,
    TokenizerConfig,
    TrainConfig,
)

config = Config(
    data=DataConfig(held_out_fraction=0.05, batch_seconds=240.0),
    # [an4] Joined utterances, since few recordings seldom have every order of words.
    augment=AugmentConfig(tempo_range=(0.85, 1.2), join_probability=0.1),
    # Characters for little text, more pieces for more.
    tokenizer=TokenizerConfig(kind="auto"),
    # [conformer], but rotary positions and as many channels as the width: faster, our choice.
    encoder=EncoderConfig(
        layers=16,
        width=144,
        attention="rotary",
        heads=4,
        feedforward_factor=4,
        kernel_frames=31,
        subsampling="conv2d",
        subsampling_channels=144,
        dropout=0.15,
        remat="layer",
    ),
    predictor=PredictorConfig(embedding_width=320, width=320, dropout=0.1),
    joint=JointConfig(width=320),
    objective=ObjectiveConfig(ctc_weight=0.3),
    # [muon] The rate of [an4] at width 96, scaled by 1 / sqrt(width).
    optimizer=OptimizerConfig(
        kind="muon", peak_learning_rate=5e-3, warmup_steps=1000, ema_decay=0.998
    ),
    train=TrainConfig(steps=30_000),
)
