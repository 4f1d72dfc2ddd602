"""Every form of a recording gives the samples of its file; every other form is one line."""

import io
import os
import socket
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from tiny import write_tone

from asr_jax.audio.samples import read_audio
from asr_jax.data.recordings import read_recording
from asr_jax.inference.inputs import named_recordings, utterances_of, valid_rate

RATE_HZ = 16_000


@pytest.fixture
def tone(tmp_path) -> Path:
    return write_tone(tmp_path / "tone.wav", 0.1)


def read(audio, rate_hz=RATE_HZ):
    utterances = utterances_of(audio, sample_rate_hz=rate_hz)
    return [read_recording(utterance, sample_rate_hz=RATE_HZ) for utterance in utterances]


def test_every_form_has_the_samples_of_the_file(tone):
    expected = read_audio(tone, sample_rate_hz=RATE_HZ)
    contents = tone.read_bytes()
    whole, _ = soundfile.read(tone, dtype="int16")
    with tone.open("rb") as file:
        one = [
            *(tone, str(tone), contents, bytearray(contents), memoryview(contents)),
            *(io.BytesIO(contents), file),
            *(expected, expected.astype(np.float64), jnp.array(expected), expected.tolist()),
            *(list(expected), tuple(expected.tolist()), expected[None], expected[:, None]),
            *(whole, whole.astype(">i2"), whole.astype(np.int32) * 2**16, jnp.array(whole)),
            {"array": expected, "sampling_rate": RATE_HZ, "path": "gone.wav"},
            {"array": expected.tolist(), "sampling_rate": float(RATE_HZ)},
            {"bytes": contents, "path": "gone.wav"},
            {"bytes": None, "path": str(tone)},
        ]
        # The check of annotations looks at one element of a list: lists of one are surely checked.
        for argument in [*one, *([form] for form in one)]:
            # A file is read once: from where it stands, which is its end the second time.
            file.seek(0)
            one[5].seek(0)
            (found,) = read(argument)
            np.testing.assert_array_equal(found, expected)
        file.seek(0)
        one[5].seek(0)
        several = read(one)
    assert len(several) == len(one)
    for found in several:
        np.testing.assert_array_equal(found, expected)
    assert len(read(iter([tone, tone]))) == len(read(np.array([str(tone)] * 2))) == 2
    assert len(read([expected.tolist()] * 3)) == 3 and read([]) == []
    # The rate is that of samples, not of files; a dict has its own.
    (slow,) = read(expected, rate_hz=8_000)
    assert len(slow) == 2 * len(expected)
    for form in (tone, {"array": expected, "sampling_rate": RATE_HZ}):
        np.testing.assert_array_equal(read(form, rate_hz=8_000), [expected])


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.zeros((2, 9), np.float32), r"audio: float32 samples of shape \(2, 9\): must be one"),
        (
            [np.zeros(9), np.zeros(0)],
            r"audio\[1\]: float64 samples of shape \(0,\): must be one",
        ),
        (np.array(0.5), r"audio: float64 samples of shape \(\): must be one channel"),
        (
            np.zeros(9, np.int64),
            "audio: int64 samples of shape .* floats in -1..1, or int16",
        ),
        ([1, 2, 3], "audio: int64 samples .* must be floats in -1..1, or int16 or int32"),
        (np.zeros(9, np.uint8), "audio: uint8 samples"),
        (np.zeros(9, bool), "audio: bool samples"),
        (np.array([0, np.nan]), "audio: float64 samples of shape .*: samples that are not finite"),
        ([[0.0, float("inf")]], r"audio\[0\]: .* samples that are not finite"),
        (b"", "audio: the file is empty"),
        (b"words", "audio: Format not recognised"),
        ([io.StringIO("words")], r"audio\[0\]: a file open for text; open it with mode 'rb'"),
        ({"array": np.zeros(9)}, r"audio\['sampling_rate'\] = None: must be a whole number of Hz"),
        ({"array": np.zeros(9), "sampling_rate": 0}, r"audio\['sampling_rate'\] = 0: must be"),
        ([{}], r"audio\[0\]: dict: must be a path, bytes, an open file, samples, or a dict"),
        ([None], r"audio\[0\]: NoneType: must be a path"),
        ("nowhere.wav", "nowhere.wav: no such file"),
        ("", ".: a folder, not a recording"),
        ("/dev/null", "/dev/null: a device or socket, not a recording"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_every_other_form_is_one_line(audio, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        read(audio)
    assert "\n" not in str(error.value)


@pytest.fixture
def unchecked_types():
    """Let values of other types reach the code, as they do outside the tests."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_rates_are_whole_numbers_of_hertz():
    assert [valid_rate(rate, "r") for rate in (1, 44_100.0, np.int64(8_000), 10**6)] == [
        *(1, 44_100, 8_000, 10**6)
    ]
    for rate in (0, -1, 0.5, float("nan"), float("inf"), 10**6 + 1, True, "16000", None):
        with pytest.raises(ValueError, match="^r = .*: must be a whole number of Hz, 1 to 10"):
            valid_rate(rate, "r")


def test_a_pipe_is_read_whole(tone, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(tone.read_bytes()))
    writer.start()
    (found,) = read(pipe)
    writer.join()
    np.testing.assert_array_equal(found, read_audio(tone, sample_rate_hz=RATE_HZ))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        with pytest.raises(ValueError, match="socket: a device or socket, not a recording$"):
            read(tmp_path / "socket")


def test_a_folder_stands_for_its_recordings_each_once(tmp_path):
    folder = tmp_path / "calls"
    names = ["b.wav", "a.FLAC", "c/x.mp3", "c/d/y.Ogg", "z.aiff"]
    others = [".hidden.wav", "._b.wav", ".cache/e.wav", "__MACOSX/b.wav", "notes.txt", "wav"]
    for name in names + others:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "c/again").symlink_to(folder)
    expected = [folder / name for name in sorted(names)]
    assert [*named_recordings([folder])] == expected
    assert [*named_recordings([folder, folder / "c", folder])] == expected
    mixed = [folder / "notes.txt", folder / "b.wav", folder, Path("-"), Path("/dev/stdin")]
    rest = [path for path in expected if path != folder / "b.wav"]
    assert [*named_recordings(mixed)] == [*mixed[:2], *rest, Path("-")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: a folder without recordings \\(.flac, "):
        named_recordings([tmp_path / "empty"])
