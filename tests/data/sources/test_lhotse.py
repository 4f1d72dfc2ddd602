"""Lhotse's cuts: each supervision is an utterance, and the errors of bad cuts."""

import copy
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asr_jax.data.manifest import read_manifest
from asr_jax.data.recordings import read_recording

CUT = {
    "id": "long-0",
    "start": 0.5,
    "duration": 2.0,
    "channel": 0,
    "supervisions": [{"id": "s", "start": 0.25, "duration": 1.0, "text": " A  B", "speaker": 7}],
    "recording": {
        "id": "long",
        "sources": [{"type": "file", "channels": [0], "source": "long.wav"}],
        "duration": 4.0,
    },
    "type": "MonoCut",
}


@pytest.fixture
def folder(tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(32_000), 8_000)
    return tmp_path


def changed(*keys, to) -> dict:
    cut = copy.deepcopy(CUT)
    inner = cut
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    return cut


def write(folder: Path, *cuts) -> Path:
    path = folder / "cuts.jsonl"
    path.write_text("".join(json.dumps(cut) + "\n" for cut in cuts))
    return path


def test_a_supervision_is_an_utterance(folder):
    (utterance,), skipped = read_manifest(write(folder, CUT))
    assert skipped == []
    assert (utterance.id, utterance.text, utterance.speaker) == ("s", "A B", "7")
    assert (utterance.offset_seconds, utterance.duration_seconds) == (0.75, 1.0)
    assert (utterance.audio, utterance.channel) == (folder / "long.wav", None)


def test_a_supervision_is_read_on_its_own_channel(tmp_path):
    """Such as in a conversation, whose speakers have a channel each."""
    left, right, both = np.full(32_000, 0.25), np.full(32_000, 0.5), np.full(32_000, 0.375)
    soundfile.write(tmp_path / "long.wav", np.stack([left, right], axis=1), 8_000)
    for name, samples in (("left.wav", left), ("right.wav", right)):
        soundfile.write(tmp_path / name, samples, 8_000)
    channels = {"0": 0, "1": 1, "one": [1], "none": None, "all": [0, 1], "other order": [1, 0]}
    cut = changed(
        "supervisions",
        to=[
            {"id": id, "start": 0.25, "duration": 1.0, "text": "A"}
            | ({} if channel is None else {"channel": channel})
            for id, channel in channels.items()
        ],
    )
    cut["recording"]["sources"][0]["channels"] = [0, 1]
    expected = {"none": left, "0": left, "1": right, "one": right, "all": both, "other order": both}

    def read(cut: dict) -> dict[str, np.ndarray]:
        utterances, skipped = read_manifest(write(tmp_path, cut))
        assert skipped == []
        return {u.id: read_recording(u, sample_rate_hz=8_000) for u in utterances}

    samples = read(cut)
    assert samples.keys() == channels.keys()
    for id in channels:
        np.testing.assert_array_equal(samples[id], expected[id][:8_000])
    sources = [
        {"type": "file", "channels": [n], "source": name}
        for n, name in enumerate(("left.wav", "right.wav"))
    ]
    cut["recording"]["sources"] = sources
    with pytest.raises(ValueError, match=r"cuts.jsonl:1: no source .* has channel \[0, 1\]"):
        read(cut)
    cut["supervisions"] = cut["supervisions"][:4]
    for id, found in read(cut).items():
        np.testing.assert_array_equal(found, expected[id][:8_000])
    sources[0]["channels"] = [0, 1, 2]
    cut["supervisions"][0]["channel"] = [0, 2]
    with pytest.raises(ValueError, match=r"cuts.jsonl:1: channels \[0, 2\] of the 3 of its rec"):
        read(cut)


def test_paths_may_start_in_the_working_directory(folder, monkeypatch):
    (folder / "data").mkdir()
    path = write(folder / "data", CUT)
    with pytest.raises(ValueError, match="none of its 1 recordings can be read.* no such file"):
        read_manifest(path)
    monkeypatch.chdir(folder)
    assert read_manifest(path)[0][0].audio == Path("long.wav")


def test_supervisions_that_cannot_be_used_are_skipped(folder):
    def supervision(id, start, duration, text="A"):
        return {"id": id, "start": start, "duration": duration, "text": text}

    every = [
        supervision("early", -0.5, 1.0),
        supervision("late", 1.5, 1.0),
        supervision("mute", 0, 1.0, None),
        supervision("rounded", -0.001, 2.002),
    ]
    cuts = [changed("supervisions", to=every), changed("supervisions", to=[]) | {"id": "bare"}]
    (utterance,), skipped = read_manifest(write(folder, *cuts))
    assert utterance.id == "rounded"
    assert (utterance.offset_seconds, utterance.duration_seconds) == (0.5, 2.0)
    assert {one.id: one.reason for one in skipped} == {
        "early": "extends beyond its cut: -0.5 to 0.5 s of 2 s",
        "late": "extends beyond its cut: 1.5 to 2.5 s of 2 s",
        "mute": "a supervision without text",
        "bare": "a cut without supervisions",
    }


def test_a_cut_that_is_wrong_by_itself_is_left_out(folder):
    cuts = [
        changed("recording", "sources", 0, "source", to="n" * 300),
        changed("supervisions", 0, "text", to="A \udce9"),
        changed("supervisions", 0, "id", to="good\udce9"),
    ]
    cuts[0]["supervisions"][0]["id"], cuts[1]["supervisions"][0]["id"] = "long", "half"
    (utterance,), skipped = read_manifest(write(folder, *cuts))
    assert (utterance.id, utterance.audio) == (r"good\udce9", folder / "long.wav")
    assert {one.id: one.reason.split(": ")[0] for one in skipped} == {
        "long": "no such file",
        "half": "transcript is not Unicode",
    }
    assert skipped[0].reason.endswith(f"{folder / 'cuts.jsonl'}:2")


SOURCE = ("recording", "sources", 0)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (changed(*SOURCE, "type", to="command"), "a source of type command, but only files"),
        (changed(*SOURCE, "type", to="url"), "a source of type url, but only files"),
        (changed(*SOURCE, "source", to=None), "needs the field source"),
        (changed("recording", "sources", to=["a.wav"]), "sources must be a list of objects"),
        (changed("recording", to=None), "a cut without a recording"),
        (changed("channel", to=1), "no source of its recording has channel 1"),
        (changed("supervisions", 0, "channel", to=2), "no source of its recording has channel 2"),
        (changed("supervisions", 0, "channel", to="left"), "no source .* has channel left"),
        (changed("supervisions", 0, "channel", to=[]), "no source of its recording has channel"),
        (changed("type", to="MixedCut"), "a MixedCut, but only MonoCuts"),
        (changed("recording", "transforms", to=[{"name": "Speed"}]), "to be changed by Speed"),
        (changed("supervisions", to=[3]), "supervisions must be a list of objects"),
        (changed("supervisions", 0, "start", to="0"), "start = '0' must be a number"),
        (changed("supervisions", 0, "duration", to=-1), "duration = -1 must be a number"),
        (changed("duration", to=None), "needs the field duration"),
        (CUT["recording"], "but cuts are needed: lhotse cut simple"),
        ({"id": "s", "recording_id": "long", "start": 0}, "but cuts are needed"),
    ],
)
def test_a_bad_cut_is_named(folder, cut, message):
    for place, cuts in ((1, [cut]), (2, [CUT, cut])):
        with pytest.raises(ValueError, match=message) as caught:
            read_manifest(write(folder, *cuts))
        assert str(caught.value).startswith(f"{folder / 'cuts.jsonl'}:{place}: ")
        assert "\n" not in str(caught.value)


def test_a_damaged_gzip_file_is_named(folder):
    path = folder / "cuts.jsonl.gz"
    whole = gzip.compress(json.dumps(CUT).encode())
    for contents, message in [
        (whole[:-20], " truncated"),
        (b"plain", "1: not JSON"),
        (whole[:20] + b"\xff" * 30 + whole[50:], " corrupt gzip"),
    ]:
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=f"{path.name}:{message}"):
            read_manifest(path)
