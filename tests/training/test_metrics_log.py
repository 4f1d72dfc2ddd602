"""metrics.jsonl and TensorBoard events are complete at every step."""

import contextlib
import itertools
import json
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from asr_jax.training.metrics_log import MetricsLog

DAY_SECONDS = 86_400


def events(run):
    """Read events from TFRecord files: length, its checksum, contents, their checksum."""
    read = []
    for path in (run / "tensorboard").iterdir():
        contents, at = path.read_bytes(), 0
        while at < len(contents):
            (length,) = struct.unpack_from("<Q", contents, at)
            read.append(Event.FromString(contents[at + 12 : at + 12 + length]))
            at += 16 + length
    return read


@pytest.mark.parametrize("days", [-100, 100])
def test_every_line_is_on_disk_immediately_even_if_the_clock_jumps(tmp_path, monkeypatch, days):
    looks = itertools.count()
    now = time.time()
    # Never before 1970, where events have no file name.
    monkeypatch.setattr(time, "time", lambda: now + DAY_SECONDS * days * (next(looks) % 50))
    with contextlib.closing(MetricsLog(tmp_path, start=2, project="")) as log:
        for step in (3, 4):
            log.write(step, {"loss": 1 / step, "rate": float(step)})
        # Read before closing, since a run may be killed.
        version, start, *logged = events(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (3, SessionLog.START)
    values = [{v.tag: v.simple_value for v in event.summary.value} for event in logged]
    assert [event.step for event in logged] == [3, 4]
    assert values == [pytest.approx({"loss": 1 / step, "rate": step}) for step in (3, 4)]
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines] == [3, 4]
