"""report.html with ten thousand rows in headless Chromium: sorting, search, clicks, drawing."""

import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pytest
import soundfile

from asr_jax.scoring import report
from asr_jax.scoring.evaluation import Evaluation
from asr_jax.types import LabelPosterior, Transcript, Utterance, Word

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
UTTERANCES = 10_000
SCRIPT = """
const seen = {}, lines = () => [...document.querySelectorAll("tbody > tr")];
const first = () => lines()[0].querySelector(".name div").firstChild.textContent;
const press = name => document.querySelector(`[data-sort=${name}]`).click();
const type = text => { search.value = text; search.oninput(); };
seen.drawn = lines().length;
seen.worst = first();
const texts = [...document.querySelectorAll("svg text")].map(text => text.getBoundingClientRect());
seen.overlaps = texts.filter((a, i) => texts.some((b, j) => i < j && a.left < b.right &&
  b.left < a.right && a.top + 4 < b.bottom && b.top + 4 < a.bottom)).length;
press("id"); seen.first = first();
press("id"); seen.last = first();
press("seconds"); seen.longest = first();
type("bird 1235"); seen.found = lines().map(line => line.querySelector(".text").textContent.trim());
document.querySelector("[data-find]").click();
seen.confused = document.querySelector("output").textContent;
type(""); press("errors"); document.querySelector("tbody tr").click();
seen.words = [...document.querySelectorAll(".words span")].map(word =>
  [word.textContent, word.className, parseFloat(word.style.left), word.title]);
setTimeout(() => {
  // The loudest row of the spectrogram in Hz, and the time of labels as fractions of the width.
  const drawn = document.querySelector(".spectrogram"), at = drawn.getContext("2d");
  const pixels = at.getImageData(0, 0, drawn.width, drawn.height).data;
  const sums = Array(drawn.height).fill(0);
  for (let n = 0; n < pixels.length; n += 4) sums[Math.floor(n / 4 / drawn.width)] += pixels[n + 1];
  const row = sums.indexOf(Math.max(...sums));
  seen.pitch = (drawn.height - row - 0.5) * 8000 / drawn.height;
  seen.playable = document.querySelectorAll(".play").length;
  const labels = document.querySelector(".lattice"), ink = labels.getContext("2d").getImageData(
    0, Math.round(7 * devicePixelRatio), Math.round(labels.width / 2), 1).data;
  const blue = [];
  for (let n = 0; n < ink.length; n += 4)
    if (ink[n + 2] > ink[n] + 80) blue.push(n / 4 / labels.width);
  seen.label = [blue[0], blue.at(-1)];
  document.querySelector("tbody tr").click();
  seen.closed = document.querySelectorAll(".panel").length;
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
}, 1000);
"""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt-get install chromium")
def test_in_a_browser(tmp_path):
    rate_hz, pitch_hz = 16_000, 1_000
    n = np.arange(2 * rate_hz)
    soundfile.write(tmp_path / "a.flac", 0.3 * np.sin(2 * np.pi * pitch_hz / rate_hz * n), rate_hz)
    flac = (tmp_path / "a.flac").read_bytes()
    audio = tmp_path / "a.flac"
    utterances = [
        Utterance(f"u{n}", audio, f"red bird {n}", 2 + n / 1000, f"speaker {n % 20}")
        for n in range(UTTERANCES)
    ]
    utterances[77] = Utterance("u77", audio, "one two three four", 2.0)
    transcripts = [
        Transcript(u.text.replace("red", "dead") if n % 2 == 0 else u.text, (), 0.0)
        for n, u in enumerate(utterances)
    ]
    words = (Word("one", 0.5, 0.6, 0.9), Word("x", 1.0, 1.1, 0.25))
    transcripts[77] = Transcript("one x", words, 0.0)
    label = LabelPosterior("one", 0.5, 0.04, (1.0, 1.0))
    evaluation = Evaluation(
        title="ten thousand",
        utterances=utterances,
        transcripts=transcripts,
        audio_seconds=1.0,
        wall_seconds=1.0,
        facts={},
    )
    report.write_evaluation(
        tmp_path / "out",
        evaluation,
        recording_of=lambda utterance, at_most_bytes: flac,
        lattices=1,
        posteriors_of=lambda utterances: {utterance.id: [label] for utterance in utterances},
    )
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    page = page.replace("</body>", f"<script>{SCRIPT}</script></body>")
    (tmp_path / "out/with_script.html").write_text(page, encoding="utf-8")
    shown = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"),
            *(f"--user-data-dir={tmp_path}/profile", "--virtual-time-budget=20000", "--dump-dom"),
            f"file://{tmp_path}/out/with_script.html",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in shown.stderr, shown.stderr
    match = re.search(r'<pre id="seen">(.*?)</pre>', shown.stdout)
    assert match, shown.stdout[-2000:] + shown.stderr
    seen = json.loads(unescape(match[1]))
    assert 0 < seen["drawn"] <= 200, "rows are drawn as they are scrolled to"
    assert [seen[name] for name in ("worst", "first", "last", "longest")] == [
        *("u77", "u0", "u9999", "u9999")
    ]
    assert seen["overlaps"] == 0, "labels of the charts"
    assert seen["found"] == ["red bird 1235"]
    assert seen["confused"] == "5,000 of 10,000 utterances"
    assert seen["words"] == [
        ["one", "", 25, "0.50 to 0.60 s, confidence 90 %"],
        ["x", "sub", 50, "1.00 to 1.10 s, confidence 25 %"],
    ]
    assert seen["pitch"] == pytest.approx(pitch_hz, abs=8000 / 128)
    assert seen["playable"] == seen["drawn"]
    assert seen["label"] == pytest.approx([0.25, 0.29], abs=0.01)
    assert seen["closed"] == 0
