"""Conformer-L on the 960 hours of LibriSpeech. Not run: no time and no WER to report.

    asr-jax train configs/librispeech_960h_l.py
    asr-jax evaluate runs/librispeech_960h_l --data data/librispeech/test-other

data/librispeech is what `asr-jax prepare librispeech data/librispeech` writes, or the folders in
LibriSpeech's archives. Batches divide over 1, 2, 4 or 8 devices. If the memory does not suffice,
--train.accumulate 8 computes an eighth of a batch at a time.

118.5 million parameters (118.8 in the paper). WER on test-clean / test-other reported elsewhere,
without a language model: 2.1 / 4.3 (paper), 2.3 / 5.1 (NeMo), 2.43 / 5.69 (icefall).

Sources of the values (fields that are not set have the defaults of asr_jax/config.py):
[paper]    arXiv 2005.08100, table 1 and section 3.2
[nemo]     NVIDIA/NeMo: examples/asr/conf/conformer/conformer_transducer_bpe.yaml
[icefall]  k2-fsa/icefall: egs/librispeech/ASR/transducer_stateless/train.py
[ctc]      k2-fsa/icefall: pruned_transducer_stateless7_ctc, its command in RESULTS.md
[axlearn]  apple/axlearn: axlearn/experiments/audio/conformer/librispeech_trainer.py
"""

from asr_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
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
    data=DataConfig(
        train="data/librispeech/train-clean-100",
        more_train=("data/librispeech/train-clean-360", "data/librispeech/train-other-500"),
        dev="data/librispeech/dev-clean",
        test="data/librispeech/test-clean",
        # Up to 20 s [icefall]: fewer than one recording in a thousand are longer.
        max_seconds=20.0,
        batch_seconds=3000.0,  # as four devices with 750 s each [ctc]
        read_threads=8,  # our choice: a core decodes about 3000 s of FLAC per second
    ),
    # Masks [paper] [nemo]; speeds [icefall].
    augment=AugmentConfig(
        speeds=(0.9, 1.0, 1.1),
        frequency_masks=2,
        frequency_mask_bins=27,
        time_masks=10,
        time_mask_fraction=0.05,
    ),
    features=FeaturesConfig(normalization="utterance"),  # "per_feature" [nemo]
    tokenizer=TokenizerConfig(kind="unigram", vocabulary_size=1024),  # [axlearn]; 1k [paper]
    # [paper], but an odd kernel and channels as wide as the blocks [nemo]; remat is our choice.
    encoder=EncoderConfig(
        layers=17,
        width=512,
        heads=8,
        feedforward_factor=4,
        kernel_frames=31,
        subsampling="conv2d",
        subsampling_channels=512,
        dropout=0.1,
        remat="layer",
    ),
    # Two labels of context [icefall] instead of the paper's LSTM: almost as accurate (arXiv
    # 2002.10472), and trained without recurrence. Width [paper], dropout [nemo].
    predictor=PredictorConfig(
        kind="stateless", context=2, embedding_width=640, width=640, dropout=0.1
    ),
    # Width [nemo], activation [icefall], weight [ctc].
    joint=JointConfig(width=640, activation="tanh"),
    objective=ObjectiveConfig(ctc_weight=0.2),
    # Peak [icefall]: Noam's 5 / sqrt(width 512 x 80 000 steps). [paper] and [nemo] have three times
    # that, [nemo] for batches ten times as large. Warm-up, betas and epsilon [paper], decay [nemo].
    optimizer=OptimizerConfig(
        peak_learning_rate=8e-4,
        warmup_steps=10_000,
        beta1=0.9,
        beta2=0.98,
        epsilon=1e-9,
        weight_decay=1e-3,
    ),
    # About 90 passes: 30 epochs of every recording at three speeds [icefall] [ctc]. bfloat16 is our
    # choice.
    train=TrainConfig(steps=115_000, compute_dtype="bfloat16"),
)
