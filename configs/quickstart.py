"""AN4 on two cores in a few minutes.

    asr-jax train configs/quickstart.py

Two cores of a shared AMD EPYC, Python 3.11: WER 32.7 % on dev, 17.6 % on test (one seed). With
other work on the machine it took 18 minutes; a quiet one has not been timed yet. The settings are
those of a first small recipe, not tuned.
"""

from asr_jax.config import (
    AugmentConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EncoderConfig,
    JointConfig,
    OptimizerConfig,
    PredictorConfig,
    TokenizerConfig,
    TrainConfig,
)

config = Config(
    data=DataConfig(
        train="samples/an4/train",
        dev="samples/an4/dev",
        test="samples/an4/test",
        bucket_seconds=(2.2, 3.4, 7.0),
        bucket_labels=(32, 40, 64),
        bucket_utterances=(12, 8, 4),
    ),
    augment=AugmentConfig(
        tempo_range=(0.85, 1.35),
        time_masks=2,
        time_mask_share=0.05,
        frequency_mask_bins=12,
    ),
    tokenizer=TokenizerConfig(kind="char"),
    encoder=EncoderConfig(
        layers=3,
        width=64,
        attention="rotary",
        heads=4,
        feedforward_factor=2,
        kernel_frames=15,
        subsampling="conv1d",
        subsampling_channels=64,
        dropout=0.05,
        remat="none",
    ),
    predictor=PredictorConfig(embedding_width=64, width=64, dropout=0.05),
    joint=JointConfig(width=96, chunk_frames=10, ctc_weight=0.3),
    optimizer=OptimizerConfig(
        kind="muon", peak_learning_rate=8e-3, warmup_steps=200, ema_decay=0.995
    ),
    train=TrainConfig(steps=2000, evaluate_every_steps=500),
    checkpoint=CheckpointConfig(every_steps=500),
)
