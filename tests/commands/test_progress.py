"""Long commands show their progress on standard error, and the same results on standard output."""

import io
import sys

import pytest

from asr_jax.commands import progress
from asr_jax.commands.progress import ProgressLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_which_disappears(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ProgressLine() as line:
        line._last -= 1.0
        line.report("listening", 0.5)
        line.report("listening", 0.6)  # too early
    assert sys.stderr.getvalue() == "\r\x1b[Klistening: 50 %\r\x1b[K"


def test_short_work_says_nothing_elsewhere(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with ProgressLine() as line:
        line.report("listening", 1.0)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_transcribe_shows_progress_beside_its_transcripts(command, trained, monkeypatch, form):
    given = ("transcribe", trained.run, *sorted(trained.data.parent.glob("*.flac")), *form)
    before = command(*given)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    shown = command(*given)
    assert (shown.status, shown.out) == (0, before.out)
    lines = shown.err.splitlines()
    assert lines[0].startswith("opening: ") and lines[-1] == "recognizing: 100 %"
