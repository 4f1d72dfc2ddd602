"""Parameters in a safetensors file are read as written, to the precision of their type."""

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors")

from safetensors.numpy import load_file, save_file

from asr_jax.export.params import ArtifactError, load_params, save_params, to_int8

RANDOM = np.random.default_rng(0)
PARAMS = {
    "blocks": {
        "linear": {
            "kernel": RANDOM.normal(size=(3, 40, 24)).astype(np.float32),
            "bias": RANDOM.normal(size=(3, 24)).astype(np.float32),
        },
        # This name resembles that of a quantized matrix's scales.
        "norm": {"scale": RANDOM.normal(size=(3, 24)).astype(np.float32)},
    },
    "embedding": {"embedding": RANDOM.normal(size=(11, 16)).astype(np.float32)},
}


def save(path, params=PARAMS, *, dtype="float32", int8=False):
    save_params(path, params, dtype=dtype, int8=int8, about={"checkpoint": "last (7)"})
    return path


def test_float32_comes_back_bit_for_bit(tmp_path):
    params, about = load_params(save(tmp_path / "m"), PARAMS)
    np.testing.assert_equal(params, PARAMS)
    assert about["checkpoint"] == "last (7)"


def test_bfloat16_is_rounded_once(tmp_path):
    params, _ = load_params(save(tmp_path / "m", dtype="bfloat16"), PARAMS)
    kernel = PARAMS["blocks"]["linear"]["kernel"]
    expected = np.asarray(jnp.asarray(kernel, jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(params["blocks"]["linear"]["kernel"], expected)


def test_int8_is_within_half_a_step_of_each_channel(tmp_path):
    """Channels whose magnitudes differ a thousandfold lose the same fraction."""
    linear = {**PARAMS["blocks"]["linear"]}
    linear["kernel"] = linear["kernel"] * np.logspace(-3, 0, 24, dtype=np.float32)
    linear["kernel"][1, :, 5] = 0
    written = {**PARAMS, "blocks": {**PARAMS["blocks"], "linear": linear}}
    path = save(tmp_path / "m", written, int8=True)
    params, _ = load_params(path, written)
    for loaded, value, axis in [
        (params["blocks"]["linear"]["kernel"], linear["kernel"], 1),
        (params["embedding"]["embedding"], written["embedding"]["embedding"], 1),
    ]:
        step = np.abs(value).max(axis, keepdims=True) / 127
        assert (np.abs(loaded - value) <= step * 0.5001).all()
        assert np.abs(loaded - value).max() > 0
    np.testing.assert_array_equal(
        params["blocks"]["norm"]["scale"], PARAMS["blocks"]["norm"]["scale"]
    )
    np.testing.assert_array_equal(params["blocks"]["linear"]["bias"], linear["bias"])
    stored = load_file(path)
    assert stored["blocks.linear.kernel"].dtype == np.int8
    assert stored["blocks.linear.kernel.channel_scale"].shape == (3, 1, 24)
    assert stored["embedding.embedding.channel_scale"].shape == (11, 1)


def test_to_int8_uses_its_range_and_keeps_zero():
    values, scale = to_int8(np.array([[-2.0, 0.0], [1.0, 0.0]], np.float32), axis=0)
    np.testing.assert_array_equal(values, [[-127, 0], [64, 0]])
    np.testing.assert_array_equal(scale, np.array([[2 / 127, 1]], np.float32))


def message(path, abstract=PARAMS):
    with pytest.raises(ArtifactError) as error:
        load_params(path, abstract)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_of_another_model_are_rejected(tmp_path):
    path = save(tmp_path / "m")
    other = {**PARAMS, "embedding": {"embedding": np.zeros((12, 16), np.float32)}}
    assert "embedding.embedding is (11, 16), expected (12, 16)" in message(path, other)
    assert "more is missing, expected (1,)" in message(path, {**PARAMS, "more": np.zeros(1)})
    less = {name: PARAMS[name] for name in ("blocks",)}
    assert "embedding.embedding is (11, 16), expected none" in message(path, less)


def test_files_of_another_version_and_damaged_files_are_rejected(tmp_path):
    path = tmp_path / "m"
    save_file({"a": np.zeros(1)}, path, metadata={"format": "asr_jax", "version": "99"})
    assert "version 99; this is asr_jax, version 1" in message(path)
    save_file({"a": np.zeros(1)}, path)
    assert "written by something else, version unknown" in message(path)
    contents = save(path).read_bytes()
    for damaged in (b"", b"hello", contents[:-100]):
        path.write_bytes(damaged)
        assert "not a complete safetensors file" in message(path)
