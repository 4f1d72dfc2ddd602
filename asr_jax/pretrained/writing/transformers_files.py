"""The files of a folder that transformers loads, beside the weights.

Field by field they are what save_pretrained of transformers 5.24 writes for its Parakeet and
Nemotron classes.
"""

from typing import NamedTuple

from asr_jax.config import Config, chunk_frames
from asr_jax.text import Tokenizer

VERSION = "5.24.0"
Json = dict[str, object]
_CLASSES = {"ctc": "ParakeetForCTC", "transducer": "ParakeetForRNNT", "tdt": "ParakeetForTDT"}
_TYPES = {"ctc": "parakeet_ctc", "transducer": "parakeet_rnnt", "tdt": "parakeet_tdt"}
_PAD = "<pad>"


class Labels(NamedTuple):
    """The ids of special labels, in transformers' order: the blank is the last label."""

    size: int
    """Labels, the blank included."""
    pad: int
    appended: tuple[str, ...]
    """Names of the labels after the pieces."""

    @property
    def blank(self) -> int:
        return self.size - 1


def labels_of(config: Config, tokenizer: Tokenizer) -> Labels:
    """Return the ids. CTC pads with its blank, others with a piece <pad>, or with label 0."""
    size = tokenizer.vocabulary_size
    if config.objective.kind == "ctc":
        return Labels(size, size - 1, (_PAD,))
    pieces = tokenizer.pieces[1:]
    return Labels(size, pieces.index(_PAD) if _PAD in pieces else 0, ("<blank>",))


def model_config(config: Config, labels: Labels) -> Json:
    """Return the fields of config.json."""
    kind, streams = config.objective.kind, bool(config.encoder.chunk_ms)
    fields: Json = {
        "architectures": ["NemotronAsrStreamingForRNNT" if streams else _CLASSES[kind]],
        "model_type": "nemotron_asr_streaming" if streams else _TYPES[kind],
        "dtype": "float32",
        "encoder_config": _encoder(config),
        "initializer_range": 0.02,
        "pad_token_id": labels.pad,
        "transformers_version": VERSION,
        "vocab_size": labels.size,
    }
    if kind == "ctc":
        return fields | {"ctc_loss_reduction": "mean", "ctc_zero_infinity": True}
    fields |= {
        "blank_token_id": labels.blank,
        "decoder_hidden_size": config.predictor.width,
        "hidden_act": config.joint.activation,
        "is_encoder_decoder": True,
        "max_symbols_per_step": config.decoding.max_symbols_per_frame,
        "num_decoder_layers": config.predictor.layers,
    }
    return fields | ({"durations": list(config.objective.durations)} if kind == "tdt" else {})


def _encoder(config: Config) -> Json:
    encoder = config.encoder
    fields: Json = {
        "activation_dropout": encoder.dropout,
        "attention_bias": encoder.bias,
        "attention_dropout": encoder.dropout,
        "conv_kernel_size": encoder.kernel_frames,
        "convolution_bias": encoder.bias,
        "dropout": encoder.dropout,
        "dropout_positions": 0.0,
        "hidden_act": "silu",
        "hidden_size": encoder.width,
        "initializer_range": 0.02,
        "intermediate_size": encoder.feedforward_factor * encoder.width,
        "layerdrop": encoder.layer_drop,
        "max_position_embeddings": 5000,
        "model_type": "parakeet_encoder",
        "num_attention_heads": encoder.heads,
        "num_hidden_layers": encoder.layers,
        "num_key_value_heads": encoder.heads,
        "num_mel_bins": config.features.mel_bins,
        # The factor is part of the subsampling's weights.
        "scale_input": False,
        "subsampling_conv_channels": encoder.subsampling_channels,
        "subsampling_conv_kernel_size": 3,
        "subsampling_conv_stride": 2,
        "subsampling_factor": encoder.subsampling_factor,
    }
    if encoder.chunk_ms:
        first = config.decoding.chunk_ms or encoder.chunk_ms[0]
        left = encoder.left_context_frames or 0
        fields |= {
            "model_type": "nemotron_asr_streaming_encoder",
            "default_num_lookahead_tokens": chunk_frames(first, config) - 1,
            "sliding_window": left + 1,
        }
    return fields


def generation_config(config: Config, labels: Labels) -> Json:
    """Return the fields of generation_config.json."""
    fields: Json = {
        "_from_model_config": True,
        "output_attentions": False,
        "output_hidden_states": False,
        "pad_token_id": labels.pad,
        "transformers_version": VERSION,
    }
    if config.objective.kind != "ctc":
        fields["decoder_start_token_id"] = labels.blank
    if config.objective.kind == "tdt":
        last = labels.size + len(config.objective.durations)
        fields["suppress_tokens"] = [*range(labels.size, last)]
    return fields


def processor_files(config: Config, labels: Labels) -> dict[str, Json]:
    """Return the fields of the files about features and text, by the files' names."""
    features = config.features
    streams = bool(config.encoder.chunk_ms)
    extractor: Json = {
        "feature_extractor_type": "ParakeetFeatureExtractor",
        "feature_size": features.mel_bins,
        "hop_length": 160,
        "n_fft": 512,
        "padding_side": "right",
        "padding_value": 0.0,
        "preemphasis": features.preemphasis,
        "return_attention_mask": True,
        "sampling_rate": features.sample_rate_hz,
        "win_length": 400,
    }
    if streams:
        extractor["feature_extractor_type"] = "NemotronAsrStreamingFeatureExtractor"
        extractor["mel_filters_dtype"] = "float32"
        return {"preprocessor_config.json": extractor}
    kinds = {"ctc": "ctc", "transducer": "rnnt", "tdt": "tdt"}
    names = {labels.blank: labels.appended[0]}
    tokenizer: Json = {
        "backend": "tokenizers",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
        "pad_token": names.get(labels.pad, _PAD if labels.pad else labels.appended[0]),
        "processor_class": "ParakeetProcessor",
        "tokenizer_class": "ParakeetTokenizer",
        "unk_token": "<unk>",
    }
    processor: Json = {
        "blank_token": "<blank>",
        "decoder_type": kinds[config.objective.kind],
        "feature_extractor": extractor,
        "processor_class": "ParakeetProcessor",
    }
    return {"processor_config.json": processor, "tokenizer_config.json": tokenizer}
