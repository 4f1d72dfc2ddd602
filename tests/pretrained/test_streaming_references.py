"""An imported streaming model computes what transformers computes, at every lookahead."""

import functools

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from asr_jax.commands import import_model
from asr_jax.config_file import load_config
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.decoding.search import search
from asr_jax.layers.subsampling import subsample
from tests.pretrained.nemo_files import contents, write_archive
from tests.pretrained.references import MODELS, greedy_reference, reference, reference_features

# transformers' differences of several programs that compute the same are as large.
ENCODED, SUBSAMPLED = 5e-6, 2e-5


def nemo_streaming_archive(path):
    """Write the streaming model as NeMo does, with two more sizes of chunks."""
    names = {
        "subsampling.conv_in.": "pre_encode.conv.0.",
        "subsampling.layers.0.depthwise_conv.": "pre_encode.conv.2.",
        "subsampling.layers.0.pointwise_conv.": "pre_encode.conv.3.",
        "subsampling.layers.1.depthwise_conv.": "pre_encode.conv.5.",
        "subsampling.layers.1.pointwise_conv.": "pre_encode.conv.6.",
        "subsampling.linear.": "pre_encode.out.",
        "relative_k_proj": "linear_pos",
        "o_proj": "linear_out",
        **{f"{name}_proj": f"linear_{name}" for name in "qkv"},
        **{f"bias_{name}": f"pos_bias_{name}" for name in "uv"},
        "conv.norm.": "conv.batch_norm.",
        "decoder.embedding.": "decoder.prediction.embed.",
        "decoder.lstm.": "decoder.prediction.dec_rnn.lstm.",
        "encoder_projector.": "joint.enc.",
        "decoder.decoder_projector.": "joint.pred.",
        "joint.head.": "joint.joint_net.2.",
    }
    tensors = {}
    for name, tensor in load_file(MODELS / "nemotron" / "model.safetensors").items():
        for theirs, nemos in names.items():
            name = name.replace(theirs, nemos) if nemos not in name else name
        tensors[name] = tensor
    config, _, files = contents("rnnt")
    config["encoder"] |= {
        "feat_in": 128,
        "att_context_size": [[8, 3], [8, 1], [8, 0]],
        "att_context_style": "chunked_limited",
        "causal_downsampling": True,
        "conv_context_size": "causal",
        "conv_norm_type": "layer_norm",
        "use_bias": False,
        "xscaling": False,
    }
    config["preprocessor"] |= {"features": 128, "normalize": "NA"}
    return write_archive(path, config, tensors, files)


def test_a_streaming_archive_and_folder_become_the_same_model(imported, tmp_path):
    path = nemo_streaming_archive(tmp_path / "a.nemo")
    assert import_model.run([str(path), str(tmp_path / "out")]) == 0
    of_folder = load_file(imported("nemotron") / "model.safetensors")
    of_archive = load_file(tmp_path / "out" / "model.safetensors")
    assert of_archive.keys() == of_folder.keys()
    assert all(np.array_equal(of_archive[key], of_folder[key]) for key in of_folder)
    config = load_config(tmp_path / "out" / "config.json")
    assert config.encoder.chunk_ms == (320.0, 160.0, 80.0)
    assert (config.decoding.chunk_ms, config.encoder.left_context_frames) == (320.0, 8)
    assert config.features.normalization == "none"


@functools.cache
def streaming_stages(opened) -> tuple[dict[str, np.ndarray], Hypotheses]:
    """Return the outputs for chunks of 4, 2 and 1 frames, and the hypotheses of the first."""
    config, _, graphdef, params, *_ = opened("nemotron")
    assert config.decoding.chunk_ms == 320

    @jax.jit
    def compute(params, features, lengths):
        model = nnx.merge(graphdef, params)
        found = {"subsampling": subsample(model.encoder.subsampling, features, lengths)[0]}
        for chunk in (4, 2, 1):
            encoded, frames = model.encoder(features, lengths, chunk_frames=chunk)
            found |= {f"encoder_lookahead_{chunk - 1}": encoded, "encoder_lengths": frames}
        encoded = found["encoder_lookahead_3"]
        return found, search(model, encoded, frames, config=config.decoding)

    return jax.device_get(compute(params, *reference_features("nemotron")))


def test_a_streaming_encoder_is_that_of_the_reference_at_every_lookahead(opened):
    found, _ = streaming_stages(opened)
    wanted = reference("nemotron")
    lengths = wanted["encoder_lengths"]
    assert found["encoder_lengths"].tolist() == lengths.tolist()
    for name in ["subsampling", *(f"encoder_lookahead_{n}" for n in (3, 1, 0))]:
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(
                found[name][row, :length],
                wanted[name][row, :length],
                atol=SUBSAMPLED if name == "subsampling" else ENCODED,
                err_msg=name,
            )


def test_greedy_labels_of_a_streaming_model_are_those_of_the_reference(opened):
    _, found = streaming_stages(opened)
    for row in range(2):
        count = found.counts[row, 0]
        labels, frames = (x[row, 0, :count].tolist() for x in (found.labels, found.frames))
        assert (labels, frames) == greedy_reference("nemotron", row)
