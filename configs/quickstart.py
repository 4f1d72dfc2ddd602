"""AN4 on two cores in five minutes, installation included: a quarter of a million parameters.

    asr-jax train configs/quickstart.py

Two cores of a shared AMD EPYC without other load, seed 0, installation included: 4 minutes 23
seconds on Python 3.11 and JAX 0.10.2, WER 19.4 % on dev, 8.1 % on test; 3 minutes 56 seconds on
Python 3.12 and JAX 0.12.0, WER 18.0 % on dev, 9.9 % on test.

Sources are in brackets; [dev] marks values that were chosen by the WER on dev (docs/benchmarks.md).
Fields that are not set have the defaults of asr_jax/config.py.

[conformer]   arXiv 2005.08100      [stateless] arXiv 2109.07513, k2-fsa/icefall
[specaugment] arXiv 1904.08779      [muon]      arXiv 2502.16982
[kaldi]       Ko et al. 2015, audio augmentation: speeds 0.9, 1.0, 1.1 (the default)
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
        # [dev] The speakers of dev are faster than those of train.
        tempo_range=(0.85, 1.35),
        # [specaugment], narrower, since a small model has no capacity to spare.
        time_masks=2,
        time_mask_fraction=0.05,
        frequency_mask_bins=12,
    ),
    # [dev] A model of 80 pieces learned far more slowly.
    tokenizer=TokenizerConfig(kind="char"),
    # The block of [conformer], small enough for two cores to train in minutes.
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
    # [stateless] with a context of 2, the default.
    predictor=PredictorConfig(embedding_width=64, width=64, dropout=0.05),
    # Chunks of 10 frames were the fastest on two cores.
    joint=JointConfig(width=96, chunk_frames=10),
    # The weight is ESPnet's usual one.
    objective=ObjectiveConfig(ctc_weight=0.3),
    # [muon]; [dev] the rate, among 4e-3, 8e-3 and 16e-3.
    optimizer=OptimizerConfig(
        kind="muon", peak_learning_rate=8e-3, warmup_steps=200, ema_decay=0.995
    ),
    train=TrainConfig(steps=2000, evaluate_every_steps=500),
    checkpoint=CheckpointConfig(every_steps=500),
)
