"""prepare: the samples that are stored are those that direct reading gives."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.data.manifest import read_manifest
from asr_jax.data.recordings import read_recording
from asr_jax.types import Record

FORMATS = {
    "vorbis.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus.ogg": {"format": "OGG", "subtype": "OPUS"},
    "lossy.mp3": {"format": "MP3"},
    "float.wav": {"subtype": "FLOAT"},
    "double.wav": {"subtype": "DOUBLE"},
    "24.wav": {"subtype": "PCM_24"},
    "8.wav": {"subtype": "PCM_U8"},
    "gsm.wav": {"subtype": "GSM610"},
}


@pytest.fixture(scope="module")
def loud(command, tmp_path_factory):
    """Recordings beyond full scale, whole and in stretches: their manifest, and prepared."""
    folder = tmp_path_factory.mktemp("loud")
    n = np.arange(3 * 16_000)
    tone = np.sin(n / 20) * (0.1 + n / len(n))
    scales = {name: 1.4 for name in FORMATS} | {"float.wav": 3.7, "double.wav": 32_768.0}
    lines = []
    for name, format in FORMATS.items():
        channels = [tone, 0.5 * tone] if name != "gsm.wav" else [tone]
        samples = scales[name] * np.stack(channels, axis=1)
        if not format.get("subtype", "OGG").startswith(("FLOAT", "DOUBLE")):
            samples = np.clip(samples, -1, 1) if "wav" in name else samples
        soundfile.write(folder / name, samples, 16_000, **format)
        whole = {"audio_filepath": name, "text": "one"}
        stretches = [{"offset": 0.5 * k, "duration": 0.5, "id": f"{name}-{k}"} for k in range(6)]
        lines += [whole, *({**whole, **stretch} for stretch in stretches)]
    manifest = folder / "loud.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    outcome = command("prepare", manifest, folder / "out")
    assert outcome.status == 0, outcome.err
    return manifest, folder / "out", outcome


def test_prepared_recordings_are_those_of_direct_reading_to_24_bits(loud):
    manifest, out, _ = loud
    assert (out / "dropped.jsonl").read_text() == ""
    directly, prepared = ({u.id: u for u in read_manifest(data)[0]} for data in (manifest, out))
    assert directly.keys() == prepared.keys() and len(directly) == 7 * len(FORMATS)
    largest = {}
    for id, utterance in directly.items():
        expected = read_recording(utterance, sample_rate_hz=16_000)
        stored = read_recording(prepared[id], sample_rate_hz=16_000)
        left = read_recording(utterance._replace(channel=0), sample_rate_hz=16_000)
        largest[id] = np.abs(left).max()
        np.testing.assert_allclose(stored, expected, rtol=0, atol=2**-23 * max(1, largest[id]))
    for name in ("vorbis.ogg-5", "opus.ogg-5", "lossy.mp3-5", "float.wav", "float.wav-5"):
        assert largest[name] > 1.0, name


def test_samples_at_the_scale_of_16_bits_are_said(loud):
    assert "7 recordings, the first is double.wav, have samples beyond 64 times" in loud[2].out


def test_an_index_without_gains_is_read(loud, tmp_path):
    out = Path(shutil.copytree(loud[1], tmp_path / "out"))
    index = json.loads((out / "index.json").read_text())
    assert sum(gain > 1 for gain in index.pop("gain")) > 7
    (out / "index.json").write_text(json.dumps(index))
    assert {u.within for u in read_manifest(out)[0]} == {
        Record(number) for number in range(len(index["id"]))
    }


def test_only_the_stretches_of_a_recording_are_decoded(tmp_path, command, monkeypatch):
    for name in ("long.wav", "long.flac"):
        soundfile.write(tmp_path / name, np.sin(np.arange(60 * 8000) / 10) / 2, 8000)
    decoded: list[int] = []

    class Counted(soundfile.SoundFile):
        def read(self, *arguments, **options):
            samples = super().read(*arguments, **options)
            decoded.append(len(samples))
            return samples

    monkeypatch.setattr(soundfile, "SoundFile", Counted)
    read_bytes = Path.read_bytes

    def read_no_recording(path: Path) -> bytes:
        assert not path.name.startswith("long."), f"all of {path} is read"
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read_no_recording)
    lines = [
        {
            "audio_filepath": name,
            "text": "one",
            "offset": k / 2,
            "duration": 0.5,
            "id": f"{name}{k}",
        }
        for name in ("long.wav", "long.flac")
        for k in range(0, 120, 10)
    ]
    manifest = tmp_path / "data.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    outcome = command("prepare", manifest, tmp_path / "out")
    assert outcome.status == 0 and "24 recordings" in outcome.out, outcome.err
    # Each is decoded once, and once more as it is stored.
    assert sum(decoded) == 24 * 2 * 4000


def test_recordings_that_are_not_whole_are_dropped(tmp_path, command):
    """Also those that are notably shorter than their manifest says: their text may be longer."""
    tone = np.sin(np.arange(32_000) / 10) / 2
    for name in ("short.wav", "rounded.flac", "late.flac", "cut.wav"):
        soundfile.write(tmp_path / name, tone, 16_000)
    opposite = np.stack([tone, -tone], axis=1)
    soundfile.write(tmp_path / "opposite.wav", opposite, 16_000)
    cut = tmp_path / "cut.wav"
    cut.write_bytes(cut.read_bytes()[:-9000])
    seconds = {"short.wav": 4.0, "rounded.flac": 2.1, "late.flac": 1.5}
    lines = [
        {"audio_filepath": path.name, "text": "one", "duration": seconds.get(path.name, 2.0)}
        | ({"offset": 1.0, "id": "late.flac"} if path.name == "late.flac" else {})
        for path in sorted(tmp_path.iterdir())
    ]
    manifest = tmp_path / "data.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    assert command("prepare", manifest, tmp_path / "out").status == 0
    dropped = map(json.loads, (tmp_path / "out/dropped.jsonl").read_text().splitlines())
    reasons = {item["id"]: item["reason"] for item in dropped}
    assert reasons.pop("opposite.wav").startswith("its channels cancel when they are averaged; ")
    assert reasons == {
        "short.wav": "shorter than its manifest says: 32000 samples",
        "late.flac": "shorter than its manifest says: 16000 samples",
        "cut.wav": "truncated: 55000 of 64000 bytes of samples",
    }
