"""Pages have one style, in light and dark, and their parts treat every text as text."""

import re
from pathlib import Path

import pytest

from asr_jax.pages.document import asset, page_style, render_document
from asr_jax.pages.elements import audio_amount, audio_uri, counted, name, stated, table

PACKAGE = Path(__file__).resolve().parents[2] / "asr_jax"


def test_colors_are_stated_once_each_in_light_and_dark():
    light, dark = re.findall(r":root \{(.*?)\}", page_style(), re.DOTALL)
    assert re.findall(r"--[\w-]+:", light) == re.findall(r"--[\w-]+:", dark)
    assert "@media (prefers-color-scheme: dark)" in page_style()
    assert "#" not in re.sub(r":root \{.*?\}", "", page_style(), flags=re.DOTALL)
    for style in (asset("scoring", "report.css"), asset("survey", "data.css")):
        assert "#" not in style and "rgb" not in style


def test_rooms_with_a_page_leave_documents_tables_and_audio_to_the_shared_room():
    for module in [*PACKAGE.glob("survey/*.py"), *PACKAGE.glob("scoring/*.py")]:
        source = module.read_text(encoding="utf-8")
        assert not re.search(r"<!doctype|<body|<table|<td|import base64", source), module


@pytest.mark.parametrize("text", ["<b>", "\"&'", "</title><script>", "\u202e\u05d0"])
def test_text_is_no_markup(text):
    page = render_document(text, text, name(text), title=text, style="")
    assert text not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL) or "<" not in text
    assert "<script" not in page and page.count("<b>") == 0


def test_numbers_agree_with_their_nouns_and_verbs():
    assert counted(1, "speaker") == "1 speaker" and counted(2000, "speaker") == "2,000 speakers"
    assert stated(1, "recording", "has an echo") == "1 recording has an echo"
    assert stated(0, "recording", "is clipped") == "0 recordings are clipped"
    assert (audio_amount(90.0), audio_amount(5400.0)) == ("1.5 min", "1.5 h")


def test_only_audio_that_a_browser_can_play_is_embedded():
    assert audio_uri(b"fLaC\0") == "data:audio/flac;base64,ZkxhQwA="
    assert audio_uri(b"") is None and audio_uri(b"NIST_1A") is None


def test_a_table_has_a_cell_for_each_heading():
    html = table(("a", "b"), [("1", "2"), ("3", "4")])
    assert html.count("<th") - html.count("<thead") == 2 and html.count("<td>") == 4
