"""NeMo's layout of sherpa-onnx: transducers and TDT with either predictor, subsampling by 4 or 8.

Blank is the last label. decoder.onnx takes the last label, initially blank, and two states,
initially zeros: the hidden states and cells of the LSTM layers; or the previous labels plus 1 of a
stateless predictor, and an unused state. sherpa-onnx computes times from `subsampling_factor`, and
takes the index of a TDT's duration for the duration.
"""

from pathlib import Path

import numpy as np

from asr_jax.config import Config, FeaturesConfig
from asr_jax.export import onnx_layers as layers
from asr_jax.export.onnx_graph import Graph, Value
from asr_jax.models.predictor import BLANK_ID

# These differ from NeMo's: sherpa-onnx keeps Kaldi's window and upper edge.
FEATURES = FeaturesConfig(low_hz=0.0, mel_scale="slaney", remove_dc=False)
MAX_SYMBOLS_PER_FRAME = {"transducer": 10, "tdt": 5}


def order(labels: list[str]) -> list[str]:
    """Return the labels in the layout's order, with the blank last."""
    return [*labels[1:], "<blk>"]


def write(folder: Path, config: Config, params: layers.Params, vocabulary: int) -> None:
    """Write encoder.onnx, decoder.onnx and joiner.onnx in float32, from parameters as NumPy."""
    _write_encoder(folder / "encoder.onnx", config, params, vocabulary)
    _write_decoder(folder / "decoder.onnx", config, params, vocabulary)
    _write_joiner(folder / "joiner.onnx", config, params["joint"], vocabulary)


def _state_width(config: Config) -> int:
    return config.predictor.width if config.predictor.kind == "lstm" else config.predictor.context


def _write_encoder(path: Path, config: Config, params: layers.Params, vocabulary: int) -> None:
    g = Graph()
    x = g.input("audio_signal", np.float32, ("N", config.features.mel_bins, "T"))
    lengths = g.input("length", np.int64, ("N",))
    x = g("Transpose", x, perm=[0, 2, 1])
    if config.features.normalization == "utterance":
        x = layers.normalized(g, x, lengths)
    encoded, lengths = layers.encoder(g, config, params["encoder"], x, lengths)
    encoded = layers.linear(g, params["joint"]["encoder_projection"], encoded)
    encoded = g("Transpose", encoded, perm=[0, 2, 1])
    g.output("outputs", encoded, np.float32, ("N", config.joint.width, "T2"))
    g.output("encoded_lengths", lengths, np.int64, ("N",))
    about = {
        "model_type": "EncDecRNNTBPEModel",
        "vocab_size": vocabulary - 1,
        "subsampling_factor": config.encoder.subsampling_factor,
        "pred_rnn_layers": config.predictor.layers,
        "pred_hidden": _state_width(config),
        # The graph itself normalizes the features.
        "normalize_type": "NA",
        "feat_dim": config.features.mel_bins,
        # sherpa-onnx looks for "tdt" here.
        "url": f"asr_jax {config.objective.kind}",
    }
    g.save(path, about)


def _write_decoder(path: Path, config: Config, params: layers.Params, vocabulary: int) -> None:
    predictor, width, state_width = params["predictor"], config.joint.width, _state_width(config)
    g = Graph()
    targets = g.input("targets", np.int32, ("N", 1))
    target_lengths = g.input("target_length", np.int32, ("N",))
    shape = (config.predictor.layers, "N", state_width)
    states = [g.input(name, np.float32, shape) for name in ("state", "state_2")]
    # Label 0 of the layout is the model's label 1, its last label the model's blank.
    label = g("Mod", g("Add", g("Cast", targets, to=7), np.array(1)), np.array(vocabulary))
    if config.predictor.kind == "lstm":
        predicted, *states = layers.lstm_step(g, predictor, g("Squeeze", label, [1]), *states)
    else:
        predicted, states[0] = _stateless_step(g, predictor, label, states[0])
    predicted = layers.linear(g, params["joint"]["predictor_projection"], predicted)
    g.output("outputs", g("Unsqueeze", predicted, [2]), np.float32, ("N", width, 1))
    g.output("prednet_lengths", target_lengths, np.int32, ("N",))
    for name, state in zip(("next_state", "next_state_2"), states):
        g.output(name, state, np.float32, shape)
    g.save(path, {})


def _write_joiner(path: Path, config: Config, joint: layers.Params, vocabulary: int) -> None:
    g = Graph()
    encoded, predicted = (
        g("Squeeze", g.input(name, np.float32, ("N", config.joint.width, 1)), [2])
        for name in ("encoder_outputs", "decoder_outputs")
    )
    logits = layers.joint(g, config, _blank_last(joint, vocabulary), encoded, predicted)
    outputs = joint["out"]["bias"].size
    g.output("outputs", g("Unsqueeze", logits, [1, 2]), np.float32, ("N", 1, 1, outputs))
    g.save(path, {})


def _stateless_step(g: Graph, p: layers.Params, label: Value, state: Value) -> tuple[Value, Value]:
    """Return output [N, D] and state [1, N, K] after a label [N, 1]."""
    before = g("Sub", g("Cast", g("Squeeze", state, [0]), to=7), np.array(1))
    context = g("Concat", layers.cut(g, before, 1, 2**31 - 1, 1), label, axis=1)
    state = g("Cast", g("Add", context, np.array(1)), to=1)
    return layers.stateless_predictor(g, p, context), g("Unsqueeze", state, [0])


def _blank_last(joint: layers.Params, vocabulary: int) -> layers.Params:
    """Return the joint's parameters with the blank as the last symbol."""
    columns = np.arange(joint["out"]["bias"].size)
    columns[:vocabulary] = np.roll(columns[:vocabulary], -1)
    assert columns[vocabulary - 1] == BLANK_ID
    return {**joint, "out": {name: value[..., columns] for name, value in joint["out"].items()}}
