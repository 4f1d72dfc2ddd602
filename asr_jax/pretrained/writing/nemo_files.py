"""A .nemo archive: model_config.yaml, the tokenizer and the weights under NeMo's names."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from asr_jax.config import Config, chunk_frames
from asr_jax.features.frames import window_samples
from asr_jax.features.mel import mel_filters
from asr_jax.pretrained.nemo_archive import CONFIG, WEIGHTS
from asr_jax.pretrained.nemo_names import NEMO, name_in
from asr_jax.pretrained.writing.torch_checkpoint import write_checkpoint
from asr_jax.text import SPACE_PIECE

Json = dict[str, object]
_TARGET = "nemo.collections.asr.models."
_MODULES = "nemo.collections.asr.modules."


def write_archive(
    path: Path, tensors: Mapping[str, np.ndarray], config: Config, model: bytes, pieces: list[str]
) -> None:
    """Write the archive.

    Args:
        tensors: by transformers' names.
        model: SentencePiece model without the blank.
        pieces: its pieces.
    """
    tokenizer = _tokenizer_files(model, pieces)
    fields = _fields(config, list(tokenizer), pieces)
    text = yaml.safe_dump(fields, allow_unicode=True, sort_keys=False)
    weights = path.with_name(WEIGHTS)
    named = {_nemo_name(name, config): x for name, x in tensors.items()}
    write_checkpoint(weights, _featurizer(config) | named)
    try:
        with tarfile.open(path, "w:") as archive:
            _add(archive, CONFIG, text.encode())
            for name, contents in tokenizer.items():
                _add(archive, name, contents)
            archive.add(weights, f"./{WEIGHTS}")
    finally:
        weights.unlink()


def _tokenizer_files(model: bytes, pieces: list[str]) -> dict[str, bytes]:
    """Return the model, the pieces and the vocabulary that NeMo restores a tokenizer from.

    Names begin with a hash of the contents, as NeMo's do. A vocabulary lists the pieces as BERT
    does: without the unknown piece, and with ## before those inside of a word.
    """
    listed = "".join(f"{piece}\t0\n" for piece in pieces)
    inside = [p[1:] if p.startswith(SPACE_PIECE) else f"##{p}" for p in pieces[1:]]
    contents = {
        "tokenizer.model": model,
        "vocab.txt": "".join(f"{piece}\n" for piece in inside).encode(),
        "tokenizer.vocab": listed.encode(),
    }
    return {
        f"{hashlib.md5(x, usedforsecurity=False).hexdigest()}_{name}": x
        for name, x in contents.items()
    }


def _featurizer(config: Config) -> dict[str, np.ndarray]:
    """Return the buffers of NeMo's features, which restoring demands."""
    samples = window_samples(config.features)
    window = 0.5 - 0.5 * np.cos(np.linspace(0, 2 * np.pi, samples))
    return {
        "preprocessor.featurizer.window": window.astype(np.float32),
        "preprocessor.featurizer.fb": mel_filters(config.features).T[None],
    }


def _add(archive: tarfile.TarFile, name: str, contents: bytes) -> None:
    member = tarfile.TarInfo(f"./{name}")
    member.size = len(contents)
    archive.addfile(member, io.BytesIO(contents))


def _nemo_name(name: str, config: Config) -> str:
    is_ctc = config.objective.kind == "ctc"
    # The output layer follows an activation, and a dropout if there is one.
    place = 2 if config.joint.dropout else 1
    heads = (
        (("" if is_ctc else "ctc_") + "decoder.decoder_layers.0.", "ctc_head."),
        (f"joint.joint_net.{place}.", "joint.head."),
    )
    return name_in((*NEMO, *heads), name)


def _fields(config: Config, tokenizer: list[str], pieces: list[str]) -> Json:
    kind, is_hybrid = config.objective.kind, config.objective.ctc_weight > 0
    classes = {
        True: "ctc_bpe_models.EncDecCTCModelBPE",
        False: "rnnt_bpe_models.EncDecRNNTBPEModel",
    }
    target = classes[kind == "ctc"]
    if kind != "ctc" and is_hybrid:
        target = "hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel"
    head = {
        "_target_": f"{_MODULES}ConvASRDecoder",
        "feat_in": config.encoder.width,
        "num_classes": len(pieces),
        "vocabulary": pieces,
    }
    fields: Json = {
        "target": _TARGET + target,
        "sample_rate": config.features.sample_rate_hz,
        "tokenizer": {
            "dir": None,
            "type": "bpe",
            "model_path": f"nemo:{tokenizer[0]}",
            "vocab_path": f"nemo:{tokenizer[1]}",
            "spe_tokenizer_vocab": f"nemo:{tokenizer[2]}",
        },
        "preprocessor": _preprocessor(config),
        "encoder": _encoder(config),
    }
    if kind == "ctc":
        return fields | {"decoder": head, "decoding": {"strategy": "greedy"}}
    fields |= _transducer(config, pieces)
    if is_hybrid:
        weight = config.objective.ctc_weight
        fields["aux_ctc"] = {
            "ctc_loss_weight": weight / (1 + weight),
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": head,
            "decoding": {"strategy": "greedy"},
        }
    return fields


def _preprocessor(config: Config) -> Json:
    features = config.features
    return {
        "_target_": f"{_MODULES}AudioToMelSpectrogramPreprocessor",
        "sample_rate": features.sample_rate_hz,
        "normalize": "per_feature" if features.normalization == "utterance" else "NA",
        "window_size": features.window_ms / 1000,
        "window_stride": features.hop_ms / 1000,
        "window": "hann",
        "features": features.mel_bins,
        "n_fft": 512,
        "log": True,
        "frame_splicing": 1,
        "dither": 1e-05,
        "pad_to": 0,
        "pad_value": 0.0,
    }


def _encoder(config: Config) -> Json:
    encoder, streams = config.encoder, bool(config.encoder.chunk_ms)
    context: object = [-1, -1]
    if encoder.context_frames:
        context = list(encoder.context_frames)
    elif streams:
        left, used = encoder.left_context_frames, config.decoding.chunk_ms
        # The first one is the default.
        sizes = sorted(encoder.chunk_ms, key=lambda size: size != used)
        context = [[left, chunk_frames(size, config) - 1] for size in sizes]
    norms = {"affine": "batch_norm", "layer": "layer_norm"}
    return {
        "_target_": f"{_MODULES}ConformerEncoder",
        "feat_in": config.features.mel_bins,
        "feat_out": -1,
        "n_layers": encoder.layers,
        "d_model": encoder.width,
        "use_bias": encoder.bias,
        "subsampling": "dw_striding",
        "subsampling_factor": encoder.subsampling_factor,
        "subsampling_conv_channels": encoder.subsampling_channels,
        "causal_downsampling": streams,
        "ff_expansion_factor": encoder.feedforward_factor,
        "self_attention_model": "rel_pos_local_attn" if encoder.context_frames else "rel_pos",
        "n_heads": encoder.heads,
        "att_context_size": context,
        "att_context_style": "chunked_limited" if streams else "regular",
        # The factor is part of the subsampling's weights.
        "xscaling": False,
        "untie_biases": True,
        "pos_emb_max_len": 5000,
        "conv_kernel_size": encoder.kernel_frames,
        "conv_norm_type": norms[encoder.convolution_norm],
        "conv_context_size": "causal" if streams else None,
        "dropout": encoder.dropout,
        "dropout_pre_encoder": encoder.dropout,
        "dropout_emb": 0.0,
        "dropout_att": encoder.dropout,
        "stochastic_depth_drop_prob": encoder.layer_drop,
        "stochastic_depth_mode": "linear",
        "stochastic_depth_start_layer": 1,
    }


def _transducer(config: Config, pieces: list[str]) -> Json:
    objective, predictor = config.objective, config.predictor
    durations = list(objective.durations) if objective.kind == "tdt" else []
    decoding: Json = {
        "strategy": "greedy_batch",
        "greedy": {"max_symbols": config.decoding.max_symbols_per_frame},
    }
    defaults: Json = {
        "enc_hidden": config.encoder.width,
        "pred_hidden": predictor.width,
        "joint_hidden": config.joint.width,
    }
    fields: Json = {
        "decoder": {
            "_target_": f"{_MODULES}RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {
                "pred_hidden": predictor.width,
                "pred_rnn_layers": predictor.layers,
                "t_max": None,
                "dropout": predictor.dropout,
            },
            "vocab_size": len(pieces),
        },
        "joint": {
            "_target_": f"{_MODULES}RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": True,
            "fused_batch_size": 4,
            "jointnet": {
                "joint_hidden": config.joint.width,
                "activation": config.joint.activation,
                "dropout": config.joint.dropout,
                "encoder_hidden": config.encoder.width,
                "pred_hidden": predictor.width,
            },
            "num_extra_outputs": len(durations),
            "num_classes": len(pieces),
            "vocabulary": pieces,
        },
        "decoding": decoding,
        "loss": {"loss_name": "default"},
        "labels": pieces,
        "model_defaults": defaults,
    }
    if durations:
        decoding |= {"model_type": "tdt", "durations": durations}
        defaults |= {"tdt_durations": durations, "num_tdt_durations": len(durations)}
        kwargs: Json = {"durations": durations, "sigma": objective.sigma, "omega": 0.1}
        fields["loss"] = {"loss_name": "tdt", "tdt_kwargs": kwargs}
    return fields
