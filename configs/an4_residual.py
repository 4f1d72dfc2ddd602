"""AN4 with a ResidualTransformer (arXiv 2310.02489): 6 layers in two groups that share matrices.

    asr-jax train configs/an4_residual.py

One core of a shared AMD EPYC with other work on it, Python 3.12, JAX 0.12.0: WER 19.5 % on dev,
10.8 % on test, means of three seeds (95 % interval +/- 0.3), in 7.5 core-minutes or 16 minutes.
0.49 million parameters, 2.0 MB in float32. docs/benchmarks.md compares it with one that shares
nothing; batches had the stated buckets there.

Rank 16 as in the paper, where the width is 512. Values without a comment are explained in
quickstart.py.
"""

from asr_jax.config import (
    AugmentConfig,
    CheckpointConfig,
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
    data=DataConfig(
        train="samples/an4/train",
        dev="samples/an4/dev",
        test="samples/an4/test",
        batch_seconds=44.0,
    ),
    augment=AugmentConfig(
        tempo_range=(0.85, 1.35), time_masks=2, time_mask_fraction=0.05, frequency_mask_bins=12
    ),
    tokenizer=TokenizerConfig(kind="char"),
    encoder=EncoderConfig(
        kind="transformer",
        layers=6,
        shared_layers=3,
        residual_rank=16,
        width=96,
        attention="rotary",
        heads=4,
        feedforward_factor=4,
        subsampling="conv1d",
        subsampling_channels=96,
        dropout=0.05,
        remat="none",
    ),
    predictor=PredictorConfig(embedding_width=64, width=64, dropout=0.05),
    joint=JointConfig(width=96, chunk_frames=10),
    objective=ObjectiveConfig(ctc_weight=0.3),
    optimizer=OptimizerConfig(
        kind="muon", peak_learning_rate=6e-3, warmup_steps=200, ema_decay=0.995
    ),
    train=TrainConfig(steps=2000, evaluate_every_steps=500),
    checkpoint=CheckpointConfig(every_steps=500),
)
