"""Fine-tuning of a FastConformer-TDT of 0.6 billion parameters, such as Parakeet-TDT 0.6B v3.

    asr-jax import parakeet-tdt-0.6b-v3.nemo parakeet
    asr-jax train configs/parakeet_finetune.py --init-from parakeet --run runs/mine \\
        --data.train my/train --tokenizer.model parakeet/tokenizer.model

Not run with a published model: no WER to report. docs/pretrained.md has the other ways: a
vocabulary of your own, frozen blocks, and adapters (--adapter.rank 8
--optimizer.peak-learning-rate 1e-3); docs/fit.md has the memory of each.

Sources of the values (fields that are not set have the defaults of asr_jax/config.py):
[v3] the sizes of the tensors of nvidia/parakeet-tdt-0.6b-v3 (V = 8192 pieces and blank)
[fast] arXiv 2305.05084    [tdt] arXiv 2304.06795
[nemo] NVIDIA/NeMo: examples/asr/conf/fastconformer/hybrid_transducer_ctc/
    fastconformer_hybrid_tdt_ctc_bpe.yaml
[finetune] NVIDIA/NeMo: examples/asr/conf/asr_finetune/speech_to_text_finetune.yaml
"""

from asr_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    DecodingConfig,
    EncoderConfig,
    FeaturesConfig,
    JointConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PredictorConfig,
    TokenizerConfig,
    TrainConfig,
)

config = Config(
    # [finetune] 16 recordings of at most 20 s.
    data=DataConfig(held_out_fraction=0.05, max_seconds=20.0, batch_seconds=240.0),
    # The masks of [finetune] are the defaults; it changes no speed.
    augment=AugmentConfig(speeds=(1.0,)),
    # [v3] The features that the encoder was trained on.
    features=FeaturesConfig(
        layout="nemo",
        window="hann",
        mel_bins=128,
        mel_scale="slaney",
        low_hz=0.0,
        high_hz=0.0,
        remove_dc=False,
    ),
    # Without --tokenizer.model: a vocabulary of the amount of text. The size is only for fit.
    tokenizer=TokenizerConfig(kind="auto", vocabulary_size=8193),
    # [v3], [fast]
    encoder=EncoderConfig(
        layers=24,
        width=1024,
        attention="relative",
        heads=8,
        feedforward_factor=4,
        kernel_frames=9,
        convolution_norm="affine",
        norm_epsilon=1e-5,
        bias=False,
        subsampling="separable",
        subsampling_factor=8,
        subsampling_channels=256,
        dropout=0.1,
        remat="layer",
    ),
    predictor=PredictorConfig(
        kind="lstm",
        layers=2,
        embedding_width=640,
        width=640,
        dropout=0.2,  # [v3], [nemo]
    ),
    joint=JointConfig(width=640, activation="relu", dropout=0.2),  # [v3], [nemo]
    objective=ObjectiveConfig(kind="tdt", durations=(0, 1, 2, 3, 4), sigma=0.02),  # [tdt], [nemo]
    # [finetune] Rate, betas and decay; its warm-up takes 5000 steps, ours suits small corpora.
    optimizer=OptimizerConfig(
        peak_learning_rate=1e-4,
        warmup_steps=500,
        final_learning_rate_ratio=0.05,
        beta1=0.9,
        beta2=0.98,
        weight_decay=1e-3,
    ),
    train=TrainConfig(steps=10_000, compute_dtype="bfloat16"),
    decoding=DecodingConfig(max_symbols_per_frame=10, window_seconds=0.0),  # as NeMo's
)
