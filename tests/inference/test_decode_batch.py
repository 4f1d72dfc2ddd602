"""Hypotheses to words with times."""

import math

import numpy as np

from asr_jax.config import Config, EncoderConfig, FeaturesConfig
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.inference.decode_batch import encoded_frame_seconds, transcripts
from asr_jax.text import Tokenizer
from asr_jax.types import Transcript, Word


def test_words_start_at_their_first_label_and_end_at_their_last(tmp_path):
    tokenizer = Tokenizer.train(["abc ab"], kind="char", vocabulary_size=0, path=tmp_path / "t")
    a, b, space = tokenizer.encode("ab ")[0], tokenizer.encode("b")[0], tokenizer.separator[0]
    labels = [[a, b, space, space, b], [0, 0, 0, 0, 0], [b, 0, 0, 0, 0]]
    found = Hypotheses(
        labels=np.array(labels),
        counts=np.array([5, 0, 0]),
        frames=np.array([[2, 2, 5, 7, 9], [0] * 5, [0] * 5]),
        log_probabilities=np.log([[0.5, 0.25, 0.1, 0.1, 0.8], [1] * 5, [1] * 5]),
        scores=np.array([-1.5, -3.0, -math.inf]),
    )
    assert transcripts(found, tokenizer, frame_seconds=0.04) == [
        Transcript(
            tokenizer.decode(labels[0]),
            (Word("ab", 0.08, 0.12, 0.125), Word("b", 0.36, 0.4, 0.8)),
            -1.5,
        ),
        Transcript("", (), -3.0),
    ]


def test_encoded_frame_has_a_whole_number_of_samples():
    config = Config(features=FeaturesConfig(sample_rate_hz=22050), encoder=EncoderConfig())
    assert encoded_frame_seconds(config) == 4 * 220 / 22050
