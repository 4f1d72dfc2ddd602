"""Archives, checkpoints and folders are read exactly, and bad ones are refused in one line."""

import io
import json
import pickle
import tarfile
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from asr_jax.pretrained.nemo_archive import CONFIG, WEIGHTS, Archive
from asr_jax.pretrained.nemo_names import renamed
from asr_jax.pretrained.torch_checkpoint import read_checkpoint
from asr_jax.pretrained.transformers_folder import read_weights
from tests.pretrained.nemo_files import (
    checkpoint,
    contents,
    state_pickle,
    tensor_pickle,
    write_archive,
    write_tar,
)
from tests.pretrained.references import MODELS

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=ml_dtypes.bfloat16),
    "c": np.ones((), np.float16),
    "d": np.arange(3),
}


def read(path):
    return read_checkpoint(Archive(path).stored(WEIGHTS))


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["ctc", "rnnt", "tdt", "hybrid"])
def test_archives_of_torch_hold_the_tensors_of_their_folders(name):
    weights = renamed(read(MODELS / f"{name}.nemo"))
    folder = load_file(MODELS / {"hybrid": "tdt"}.get(name, name) / "model.safetensors")
    for key, tensor in folder.items():
        if not key.endswith("num_batches_tracked"):
            assert np.array_equal(weights[key].values(), tensor), key
    extra = weights.keys() - folder.keys()
    assert extra == ({"ctc_head.weight", "ctc_head.bias"} if name == "hybrid" else set())


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_every_form_of_an_archive_holds_the_same(tmp_path, mode, compression):
    stored = checkpoint(TENSORS, compression=compression)
    path = write_tar(tmp_path / "a.nemo", {WEIGHTS: stored, "x": b"text"}, mode=mode)
    weights = read(path)
    assert Archive(path).read("x") == b"text"
    assert {name: weight.dtype for name, weight in weights.items()} == {
        name: str(tensor.dtype) for name, tensor in TENSORS.items()
    }
    for name in ("a", "b", "c"):
        assert np.array_equal(weights[name].read(), TENSORS[name])
        assert weights[name].shape == TENSORS[name].shape


def test_a_view_of_a_storage_is_read_by_its_offset_and_strides(tmp_path):
    described = tensor_pickle(0, TENSORS["a"])
    # The transpose without its first row: offset 1, shape (2, 2), strides (1, 3).
    offset, shape, strides = b"J\0\0\0\0", b"(J\2\0\0\0J\3\0\0\0t", b"(J\3\0\0\0J\1\0\0\0t"
    assert offset + shape + strides in described
    view = b"J\1\0\0\0(J\2\0\0\0J\2\0\0\0t(J\1\0\0\0J\3\0\0\0t"
    pickled = b"\x80\x02}(X\1\0\0\0a" + described.replace(offset + shape + strides, view) + b"u."
    data = checkpoint({"a": TENSORS["a"]}, pickled=pickled)
    weights = read(write_tar(tmp_path / "a.nemo", {WEIGHTS: data}))
    assert np.array_equal(weights["a"].read(), TENSORS["a"].T[1:])


class Calls:
    def __reduce__(self):
        return print, ("this pickle was executed",)


def test_a_pickle_that_calls_a_function_is_refused_and_not_run(tmp_path, capsys):
    data = checkpoint(TENSORS, pickled=pickle.dumps({"a": Calls()}, 2))
    path = write_tar(tmp_path / "a.nemo", {WEIGHTS: data})
    with pytest.raises(
        ValueError, match=r"a\.nemo: model_weights\.ckpt: .*builtin.*\.print"
    ) as error:
        read(path)
    assert one_line(error) and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "pickled, message",
    [
        (state_pickle(TENSORS)[:-40], "model_weights"),
        (b"\x80\x02cos\nsystem\n.", "os.system"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02]q\0.", "must hold a dict"),
        (b"\x80\x02}(X\1\0\0\0aK\1u.", "a: must be a tensor"),
        (b"\x80\x02}(X\1\0\0\0a" + tensor_pickle(9, TENSORS["a"]) + b"u.", "data/9"),
        (b"\x80\x02}(X\1\0\0\0a" + tensor_pickle(0, TENSORS["a"], size=5) + b"u.", "storage"),
        (
            b"\x80\x02}(X\1\0\0\0a" + tensor_pickle(0, np.zeros((9, 9), "f4"), size=6) + b"u.",
            "storage",
        ),
    ],
)
def test_damaged_checkpoints_are_refused_in_one_line(tmp_path, pickled, message):
    data = checkpoint({"a": TENSORS["a"]}, pickled=pickled)
    with pytest.raises(ValueError, match=message) as error:
        read(write_tar(tmp_path / "a.nemo", {WEIGHTS: data}))
    assert "a.nemo" in one_line(error)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_truncated_archives_are_refused_wherever_they_end(tmp_path, mode):
    path = write_archive(tmp_path / "a.nemo", {"target": "x"}, TENSORS, {}, mode=mode)
    whole = path.read_bytes()
    # A tar ends in blocks of zeros that hold nothing.
    for size in range(0, len(whole) - (10_240 if mode == "w" else 97), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.nemo") as error:
            archive = Archive(path)
            archive.read(CONFIG)
            read(path)
        one_line(error)


def member(name: str, type: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, link
    return info


@pytest.mark.parametrize(
    "info, message",
    [
        (member("model_weights.ckpt", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (member("x", tarfile.LNKTYPE, "model_config.yaml"), "a link"),
        (member("x", tarfile.FIFOTYPE), "a device"),
        (member("../model_config.yaml"), "leads out"),
        (member("/model_config.yaml"), "leads out"),
        (member("a/../../b"), "leads out"),
        (member("./model_config.yaml"), "two members"),
    ],
)
def test_links_and_climbing_paths_are_refused(tmp_path, info, message):
    path = tmp_path / "a.nemo"
    with tarfile.open(path, "w") as tar:
        tar.addfile(member("model_config.yaml"))
        tar.addfile(info, io.BytesIO())
    with pytest.raises(ValueError, match=rf"a\.nemo: .*{message}") as error:
        Archive(path)
    one_line(error)


def test_shards_hold_the_tensors_of_one_file(tmp_path):
    tensors = load_file(MODELS / "ctc" / "model.safetensors")
    names = sorted(tensors)
    index = {name: f"model-{n % 3}.safetensors" for n, name in enumerate(names)}
    for file in set(index.values()):
        save_file({name: tensors[name] for name in names if index[name] == file}, tmp_path / file)
    where = tmp_path / "model.safetensors.index.json"
    where.write_text(json.dumps({"weight_map": index}))
    weights = read_weights(tmp_path)
    assert weights.keys() == tensors.keys()
    assert all(np.array_equal(weights[name].read(), tensors[name]) for name in names)

    where.write_text(json.dumps({"weight_map": {**index, "more": "model-0.safetensors"}}))
    with pytest.raises(ValueError, match="more is missing"):
        read_weights(tmp_path)
    where.write_text(json.dumps({"weight_map": {"more": "../x.safetensors"}}))
    with pytest.raises(ValueError, match="in the same folder"):
        read_weights(tmp_path)


@pytest.mark.parametrize("size", [0, 7, 500, -4])
def test_truncated_safetensors_are_refused(tmp_path, size):
    whole = (MODELS / "ctc" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:size])
    with pytest.raises(ValueError, match="not a complete safetensors file") as error:
        read_weights(tmp_path)
    one_line(error)


def test_types_that_numpy_lacks_are_described(tmp_path):
    tensors = {
        "a": np.zeros(3, ml_dtypes.bfloat16),
        "b": np.zeros(3, ml_dtypes.float8_e4m3fn),
        "c": np.zeros(3),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    path = write_tar(tmp_path / "a.nemo", {WEIGHTS: checkpoint(tensors)})
    expected = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    for weights in (read_weights(tmp_path), read(path)):
        assert {name: weight.dtype for name, weight in weights.items()} == expected


def test_the_contents_of_an_archive_survive_being_written_again(tmp_path):
    config, tensors, files = contents("tdt")
    path = write_archive(tmp_path / "a.nemo", config, tensors, files)
    weights = read(path)
    assert all(np.array_equal(weights[name].read(), tensors[name]) for name in tensors)
