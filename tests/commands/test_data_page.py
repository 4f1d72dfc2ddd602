"""prepare's page shows what is in the data: planted faults first, any text, nothing loaded."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import write_manifest, write_tone

from asr_jax.data.manifest import read_manifest
from asr_jax.text_files import escaped

SECONDS = 1.5
HOSTILE = '<script>alert(1)</script> "&'


class Page(HTMLParser):
    """The text of each section, by its id or heading, and all tags and attributes."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)

    def section(self, id: str) -> str:
        found = re.search(rf'<section id="{id}">(.*?)</section>', self.html, re.DOTALL)
        return re.sub(r'src="[^"]*"', "", found[1]) if found else ""


@pytest.fixture(scope="module")
def planted(tmp_path_factory, command):
    """Sixty recordings with texts of one length, and one with each fault; their page."""
    folder = tmp_path_factory.mktemp("planted")
    random = np.random.default_rng(0)
    lines = []

    def add(name: str, samples: np.ndarray, text: str) -> None:
        soundfile.write(folder / f"{name}.wav", samples, 16_000)
        lines.append({"audio_filepath": f"{name}.wav", "text": text, "id": name, "speaker": "ann"})

    def voice(seconds: float = SECONDS) -> np.ndarray:
        return 0.1 * random.normal(size=round(16_000 * seconds)).clip(-3, 3)

    text = "one two three four five"
    for n in range(60):
        add(f"plain{n}", voice(SECONDS + n / 300), text)
    add("wrong", voice(6.0), text)
    add("clipped", np.clip(20 * voice(), -1, 1), text)
    add("quiet", voice() / 1000, text)
    add("silent", np.zeros(16_000), text)
    add("padded", np.concatenate([np.zeros(40_000), voice()]), text)
    twin, other = voice(), voice()
    for name, words in (("twin1", text), ("twin2", f"{text} six")):
        add(name, twin, words)
    for name in ("copy1", "copy2"):
        add(name, other, text)
    add("lookalike", voice(), "one two thr\u0435e four five")
    add("invisible", voice(), "one two\u200b three four five")
    add("hostile", voice(), HOSTILE)
    (folder / "bad.wav").write_bytes(b"RIFF")
    lines.append({"audio_filepath": "bad.wav", "text": text, "id": "bad"})
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    outcome = command("prepare", folder / "m.jsonl", folder / "out")
    assert outcome.status == 0, outcome.err
    assert f"what is in the data: {folder / 'out/data.html'}" in outcome.out
    return folder, Page(folder / "out/data.html")


def test_every_planted_fault_is_listed(planted):
    _, page = planted
    for section, ids in {
        "clipped": {"clipped"},
        "quiet": {"quiet"},
        "ends": {"padded"},
        "different": {"twin1", "twin2"},
        "same": {"copy1", "copy2"},
        "left-out": {"silent", "bad"},
    }.items():
        assert set(re.findall(r"<bdi>(.*?)</bdi>", page.section(section))) == ids, section
    # A longer text than usual is listed too, but after the worst.
    assert re.findall(r"<bdi>(.*?)</bdi>", page.section("texts"))[0] == "wrong"
    first = page.html[page.html.index("Look at first") :].partition("</section>")[0]
    assert "2 recordings are left out" in re.sub(r"<.*?>", "", first)
    assert "look-alike" in page.section("characters")
    assert "U+0435" in page.section("characters") and "U+200B" in page.section("characters")


def test_the_sums_are_those_of_the_dataset(planted):
    folder, page = planted
    utterances, _ = read_manifest(folder / "out")
    assert f"<p>{len(utterances)} recordings" in page.html
    histograms = re.findall(r"<svg.*?</svg>", page.html, re.DOTALL)
    assert len(histograms) == 4
    for svg in histograms:
        counts = map(int, re.findall(r": (\d+)</title>", svg))
        assert sum(counts) == len(utterances)
    texts = "".join(utterance.text for utterance in utterances)
    assert f"<td>U+0065</td><td>{texts.count('e'):,}</td>" in page.html


def test_the_page_loads_nothing_and_no_text_is_markup(planted):
    _, page = planted
    assert not re.search(r"https?:|@import|url\(", page.html)
    sources = [value or "" for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:", "#")) for value in sources)
    assert "script" not in page.tags and HOSTILE not in page.html
    assert page.tags.count("audio") >= 5
    assert len(page.html) < 1_000_000


def test_the_page_of_a_prepared_dataset_is_that_of_its_source(planted, command, tmp_path):
    """Apart from what is left out, which a prepared dataset does not hold."""
    folder, _ = planted
    pages = {}
    for name in ("m.jsonl", "out"):
        outcome = command("prepare", folder / name, "--page", tmp_path / f"{name}.html")
        assert outcome.status == 0, outcome.err
        html = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        html = re.sub(r'<section id="left-out">.*?</section>', "", html, flags=re.DOTALL)
        html = re.sub(r'<li><a href="#left-out">.*?</li>', "", html)
        pages[name] = html.replace(str(folder / name), "NAME")
    assert pages["m.jsonl"] == pages["out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.jsonl.html", "out.html"]


def test_the_page_alone_encodes_and_writes_nothing_else(command, tmp_path, monkeypatch):
    """Segments, one channel of two, and another rate would become FLAC when they are stored."""
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "pair.wav", 0.1 * random.normal(size=(30_000, 2)).clip(-3, 3), 8_000)
    manifest = tmp_path / "pair.jsonl"
    parts = [{"offset": 0.5, "duration": 1.0}, {"offset": 2.0}, {"duration": 3.749}, {"text": ""}]
    manifest.write_text(
        "\n".join(
            json.dumps({"audio_filepath": "pair.wav", "text": "a b c", "id": f"part{n}"} | part)
            for n, part in enumerate(parts)
        )
    )
    assert command("prepare", manifest, tmp_path / "out").status == 0
    files = set(tmp_path.rglob("*"))
    monkeypatch.setattr(soundfile, "write", refused_but_mp3(soundfile.write))
    outcome = command("prepare", manifest, "--page", tmp_path / "pages/page.html")
    assert outcome.status == 0, outcome.err
    assert set(tmp_path.rglob("*")) - files == {tmp_path / "pages", tmp_path / "pages/page.html"}
    alone, stored = Page(tmp_path / "pages/page.html"), Page(tmp_path / "out/data.html")
    assert alone.html.replace(str(manifest), "NAME") == stored.html.replace(
        str(tmp_path / "out"), "NAME"
    )
    assert "1 recording is left out" in alone.html and "1 recordings" not in alone.html
    assert "empty transcript" in alone.section("left-out")
    assert "<audio" in alone.section("left-out")


def refused_but_mp3(write):
    def write_mp3(*arguments, **options):
        assert options["format"] == "MP3", options
        write(*arguments, **options)

    return write_mp3


def test_names_are_no_markup_and_need_not_be_utf_8(command, tmp_path):
    names = ["a\"b'c", "<i>x&amp;", "two  spaces", "new\nline", "caf\udce9", "\u202eabc", "\u05d0"]
    lines = []
    for name in names:
        path = write_tone(tmp_path / "tone.wav", 0.5)
        path.rename(tmp_path / f"{name}.wav")
        lines.append({"audio_filepath": f"{name}.wav", "text": "a b", "speaker": name})
        lines.append({"audio_filepath": f"{name}.lost.wav", "text": "a b"})
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
    outcome = command("prepare", tmp_path / "m.jsonl", "--page", tmp_path / "caf\udce9.html")
    assert outcome.status == 0, outcome.err
    page = Page(tmp_path / "caf\udce9.html")
    assert "i" not in page.tags
    for name in (escaped(name) for name in names):
        assert name in page.words, "a speaker"
        assert f"{name}.wav" in page.words, "one of recordings with the same audio and text"
        assert f"{name}.lost.wav" in page.words, "what is left out"


@pytest.mark.parametrize("sound", [0, 1])
def test_a_dataset_of_one_recording(sound, command, tmp_path):
    soundfile.write(tmp_path / "a.wav", sound * np.sin(np.arange(8_000)), 16_000)
    write_manifest(tmp_path / "m.jsonl", {"a.wav": "one"})
    outcome = command("prepare", tmp_path / "m.jsonl", "--page", tmp_path / "page.html")
    assert outcome.status == 0, outcome.err
    page = Page(tmp_path / "page.html")
    assert ("1 recording is left out" in page.html) == (not sound)
    assert ("<p>1 recording " in page.html) == bool(sound) and "1 recordings" not in page.html


@pytest.mark.parametrize(
    "listing, text, reason",
    [
        ("1-1.trans.txt", "1-1-1 ONE\n", "no line in a *.trans.txt"),
        ("1-1-1.txt", "ONE", "no text file beside it"),
    ],
)
def test_recordings_without_text_are_played(listing, text, reason, command, tmp_path):
    for name in ("1-1-1", "1-1-2"):
        write_tone(tmp_path / f"1/1/{name}.flac", 0.5)
    (tmp_path / "1/1" / listing).write_text(text)
    outcome = command("prepare", tmp_path, "--page", tmp_path / "page.html")
    assert outcome.status == 0, outcome.err
    left_out = Page(tmp_path / "page.html").section("left-out")
    assert reason in left_out and "<audio" in left_out


def test_without_out_a_page_is_required(error, tmp_path):
    assert error("prepare", tmp_path).startswith("OUT is required: the folder to create; or --page")
