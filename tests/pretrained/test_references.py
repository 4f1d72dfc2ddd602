"""Imported models compute what transformers computes with the same weights, at every stage."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

import asr_jax
from asr_jax.decoding.hypotheses import Hypotheses
from asr_jax.decoding.search import search
from asr_jax.features.logmel import log_mel
from asr_jax.layers.attention import relative_positions
from asr_jax.pretrained.nemo_archive import WEIGHTS, Archive
from asr_jax.pretrained.nemo_names import renamed
from asr_jax.pretrained.torch_checkpoint import read_checkpoint
from asr_jax.text import Tokenizer
from asr_jax.training.objective import utterance_losses
from tests.pretrained.references import (
    MODELS,
    greedy_reference,
    recordings,
    reference,
    reference_features,
)

# The stages of rnnt are those of the others.
every_model = pytest.mark.parametrize(
    "name", ["ctc", "tdt", pytest.param("rnnt", marks=pytest.mark.slow)]
)
# transformers' differences of several programs that compute the same are as large.
FEATURES, ENCODED, LOGITS, LOSS = 1e-4, 5e-6, 5e-5, 1e-6


@functools.cache
def stages(opened, name: str) -> tuple[dict[str, np.ndarray], Hypotheses]:
    """Return the outputs for the reference's features: of every stage, as transformers names it,
    and of greedy search."""
    config, _, graphdef, params, *_ = opened(name)
    wanted = reference(name)

    @jax.jit
    def compute(params, features, lengths, labels, label_lengths):
        model = nnx.merge(graphdef, params)
        encoder = model.encoder
        x, frames = encoder.subsampling(features, lengths)
        block = jax.tree.map(lambda a: a[0], encoder.blocks)
        positions = relative_positions(x.shape[1], x.shape[2])
        found = {"subsampling": x, "layer0_feedforward1": block.first_feedforward(x)}
        y = x + 0.5 * found["layer0_feedforward1"]
        found["layer0_attention"] = block.attention(y, positions, frames)
        y = y + found["layer0_attention"]
        found["layer0_convolution"] = block.convolution(y, frames)
        found["layer0"] = block(x, positions, frames)
        found["encoder"], found["encoder_lengths"] = encoder(features, lengths)
        encoded = found["encoder"]
        if config.objective.kind == "ctc":
            found["logits"] = jnp.roll(model.ctc_head(encoded), -1, axis=-1)
        else:
            found |= transducer_stages(model, encoded, labels)
        hypotheses = search(model, encoded, found["encoder_lengths"], config=config.decoding)
        losses = utterance_losses(model, features, lengths, labels, label_lengths, config=config)
        return found | losses, hypotheses

    features, lengths = reference_features(name)
    labels = np.where(
        np.arange(wanted["labels"].shape[1]) < wanted["label_lengths"][:, None],
        wanted["labels"] + 1,
        0,
    )
    found = compute(
        params,
        features,
        lengths,
        labels.astype(np.int32),
        wanted["label_lengths"].astype(np.int32),
    )
    return jax.device_get(found)


def transducer_stages(model, encoded, labels):
    joint = model.joint
    projected = joint.encoder_projection(encoded)
    predicted = joint.predictor_projection(model.predictor(labels))
    logits = joint(*jnp.broadcast_arrays(projected[1][:, None], predicted[1][None]))
    symbols, durations = jnp.split(logits, [joint.vocabulary_size], axis=-1)
    symbols = jnp.roll(symbols, -1, axis=-1)
    return {
        # The encoder's projection has the bias of the predictor's, too.
        "predictor": predicted - predicted[:, :1],
        "logits_of_second": jnp.concatenate([symbols, durations], axis=-1),
    }


@pytest.mark.parametrize("name", [pytest.param("ctc", marks=pytest.mark.slow), "tdt"])
def test_features_are_those_of_the_reference(opened, name):
    samples, sample_lengths = map(jnp.asarray, recordings(name))
    features, lengths = log_mel(samples, sample_lengths, opened(name).config.features)
    wanted, wanted_lengths = reference_features(name)
    assert lengths.tolist() == wanted_lengths.tolist()
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(features[row, :length], wanted[row, :length], atol=FEATURES)


@every_model
def test_encoder_is_that_of_the_reference_at_every_stage(opened, name):
    (found, _), wanted = stages(opened, name), reference(name)
    lengths = wanted["encoder_lengths"]
    assert found["encoder_lengths"].tolist() == lengths.tolist()
    scale = 24**0.5 if name != "tdt" else 1.0  # the reference's subsampling is not scaled
    for stage in wanted.keys() & found.keys():
        if stage.startswith(("subsampling", "layer0", "encoder")) and wanted[stage].ndim == 3:
            factor = scale if stage == "subsampling" else 1.0
            for row, length in enumerate(lengths):
                np.testing.assert_allclose(
                    found[stage][row, :length],
                    factor * wanted[stage][row, :length],
                    atol=2 * ENCODED if stage == "subsampling" else ENCODED,
                    err_msg=stage,
                )


@every_model
def test_logits_and_losses_are_those_of_the_reference(opened, name):
    (found, _), wanted = stages(opened, name), reference(name)
    lengths, labels = wanted["encoder_lengths"], wanted["label_lengths"]
    if name == "ctc":
        for row, length in enumerate(lengths):
            logits = found["logits"][row, :length]
            np.testing.assert_allclose(logits, wanted["logits"][row, :length], atol=LOGITS)
    else:
        frames, positions = lengths[1], labels[1] + 1
        logits = found["logits_of_second"][:frames, :positions]
        of_reference = wanted["logits_of_second"][:frames, :positions]
        np.testing.assert_allclose(logits, of_reference, atol=LOGITS)
        predicted = wanted["predictor"] - wanted["predictor"][:, :1]
        for row, label_length in enumerate(labels):
            np.testing.assert_allclose(
                found["predictor"][row, : label_length + 1],
                predicted[row, : label_length + 1],
                atol=ENCODED,
            )
    loss = wanted.get("loss_per_utterance_sigma_0.02", wanted["loss_per_utterance"])
    np.testing.assert_allclose(found["loss"], loss, rtol=LOSS)


@every_model
def test_greedy_labels_and_frames_are_those_of_the_reference(opened, name):
    _, found = stages(opened, name)
    for row in range(2):
        labels = found.labels[row, 0, : found.counts[row, 0]].tolist()
        frames = found.frames[row, 0, : found.counts[row, 0]].tolist()
        if name == "ctc":
            assert labels == ctc_labels(row)
        else:
            assert (labels, frames) == greedy_reference(name, row)


def ctc_labels(row: int) -> list[int]:
    """Return the reference's symbols of all frames without repeats and blanks; blank is 0."""
    wanted = reference("ctc")
    symbols = (wanted["greedy_frame_ids"][row, : wanted["encoder_lengths"][row]] + 1) % 64
    return [int(b) for a, b in zip([0, *symbols], symbols) if b not in (0, a)]


@pytest.mark.parametrize("name", ["ctc", "rnnt", "tdt", "hybrid"])
def test_an_archive_and_a_folder_become_the_same_model(imported, name):
    folder = imported({"hybrid": "tdt"}.get(name, name))
    archive = imported(f"{name}.nemo")
    of_folder = load_file(folder / "model.safetensors")
    of_archive = load_file(archive / "model.safetensors")
    extra = of_archive.keys() - of_folder.keys()
    assert extra == ({"ctc_head.kernel", "ctc_head.bias"} if name == "hybrid" else set())
    assert all(np.array_equal(of_archive[key], of_folder[key]) for key in of_folder)
    tokenizer = "tokenizer.model"
    assert (folder / tokenizer).read_bytes() == (archive / tokenizer).read_bytes()
    different = {"predictor.dropout", "objective.ctc_weight"}
    fields, others = (json.loads((x / "config.json").read_bytes()) for x in (folder, archive))
    assert {key for key in fields if fields[key] != others[key]} <= different


def test_a_hybrid_has_both_heads(opened):
    config, _, graphdef, params, *_ = opened("hybrid.nemo")
    assert config.objective.kind == "tdt" and config.objective.ctc_weight == pytest.approx(3 / 7)
    weights = renamed(read_checkpoint(Archive(MODELS / "hybrid.nemo").stored(WEIGHTS)))
    encoded = reference("tdt")["encoder"]
    logits = nnx.merge(graphdef, params).ctc_head(encoded)
    kernel, bias = weights["ctc_head.weight"].values(), weights["ctc_head.bias"].values()
    wanted = encoded @ kernel[:, :, 0].T + bias
    np.testing.assert_allclose(jnp.roll(logits, -1, axis=-1), wanted, atol=ENCODED)


def test_transcripts_are_timed_and_the_same_in_a_batch(imported):
    model = asr_jax.load(imported("tdt.nemo"))
    samples, lengths = recordings("tdt")
    both = [samples[row, :length] for row, length in enumerate(lengths)]
    transcripts = model.transcribe(both, timestamps=True)
    for transcript, samples in zip(transcripts, both):
        (alone,) = model.transcribe(samples, timestamps=True)
        assert (transcript.text, transcript.words) == (alone.text, alone.words)
        assert transcript.score == pytest.approx(alone.score, abs=1e-4)
    tokenizer = Tokenizer.load(imported("tdt.nemo") / "tokenizer.model")
    for row, transcript in enumerate(transcripts):
        labels, frames = greedy_reference("tdt", row)
        assert transcript.text == tokenizer.decode(labels)
        words = tokenizer.words(labels)
        assert [word.text for word in transcript.words] == [text for text, _ in words]
        starts = [round(0.08 * frames[places[0]], 3) for _, places in words]
        assert [word.start_seconds for word in transcript.words] == starts
        assert all(0 < word.confidence <= 1 for word in transcript.words)
