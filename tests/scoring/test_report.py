"""Files of an evaluation are consistent, hold any text, and need no network."""

import base64
import functools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from asr_jax.scoring import report, wer
from asr_jax.scoring.evaluation import Baseline, Evaluation, Figures, unwritable
from asr_jax.scoring.normalize import librispeech_text
from asr_jax.types import LabelPosterior, Member, Skipped, Transcript, Utterance, Word

HOSTILE = '</script><b onload="x">& <!-- \u2028 \\u003c {braces} $cost'


WORDS = (Word("yes", 0.08, 0.2, 0.75),)
TRANSCRIPT = Transcript("yes", WORDS, -0.5)


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text of each script by id."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: dict[str, str] = {}
        self.words: list[str] = []
        self.script: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.script = dict(attrs).get("id", "program") if tag == "script" else None

    def handle_endtag(self, tag):
        self.script = None

    def handle_data(self, data):
        if self.script is None:
            self.words.append(data)
        else:
            self.scripts[self.script] = self.scripts.get(self.script, "") + data

    @property
    def rows(self) -> list[dict]:
        return json.loads(self.scripts["rows"])


def utterance(
    name: str, text: str, *, speaker: str = "", audio: Path = Path("none.raw"), seconds=3
):
    return Utterance(name, audio, text, float(seconds), speaker)


def make_evaluation(**changes) -> Evaluation:
    rest = dict(title="test", facts={}, audio_seconds=30.0, wall_seconds=2.0)
    return Evaluation(**(rest | changes))


def evaluate(
    output: Path,
    pairs,
    *,
    recording_of=None,
    lattices=0,
    posteriors_of=None,
    **changes,
) -> Figures:
    utterances, hypotheses = zip(*pairs)
    transcripts = [Transcript(text, WORDS, 0.0) for text in hypotheses]
    return report.write_evaluation(
        output,
        make_evaluation(utterances=utterances, transcripts=transcripts, **changes),
        recording_of=recording_of,
        lattices=lattices,
        posteriors_of=posteriors_of,
    )


def page_of(output: Path) -> Page:
    return Page((output / "report.html").read_text(encoding="utf-8"))


PAIRS = [
    (utterance("u1", "the cat sat down", speaker="ann"), "the hat sat down there"),
    (utterance("u2", "yes", speaker="bob", seconds=0.5), "yes"),
    (utterance("u3", "Größe zählt doch", speaker="ann", seconds=9), "größe doch"),
    (utterance("u4", "", seconds=8), ""),
]


def test_figures_are_percent_and_agree_with_the_files(tmp_path):
    lost = [Skipped("u5", "truncated")]
    figures = evaluate(tmp_path, PAIRS, facts={"decoder": "greedy"}, not_recognized=lost)
    assert figures == json.loads((tmp_path / "wer.json").read_text())
    # By hand: cat/hat, +there; Größe/größe, -zählt; over 4 + 1 + 3 words, in 2 of 4 utterances.
    assert figures["wer"] == 50.0
    assert [figures[k] for k in ("substitutions", "deletions", "insertions")] == [2, 1, 1]
    assert (figures["reference_words"], figures["utterances"]) == (8, 4)
    assert figures["sentence_error_rate"] == 50.0
    assert figures["rtfx"] == 15.0
    # 1 + 6 of 16 characters, 0 of 3, 1 + 6 of 16.
    assert figures["cer"] == pytest.approx(100 * 14 / 35)
    assert figures["wer_by_speaker"] == {"ann": pytest.approx(400 / 7), "bob": 0.0}
    assert figures["wer_by_duration"] == {
        **{"up to 1 s": 0.0, "2 to 4 s": 50.0},
        **{"4 to 8 s": None, "8 to 16 s": pytest.approx(200 / 3)},
    }
    assert figures["wer_by_confidence"] == {"70 to 80 %": 50.0}
    assert figures["not_recognised"] == [{"id": "u5", "reason": "truncated"}]
    assert figures["facts"] == {"decoder": "greedy"}
    counts = [wer.count_word_errors(u.text, h) for u, h in PAIRS]
    interval = [100 * edge for edge in wer.bootstrap_interval(counts, seed=0)]
    assert figures["wer_95_percent_interval"] == interval
    lines = (tmp_path / "hypotheses.jsonl").read_text(encoding="utf-8").splitlines()
    word = {"text": "yes", "start_seconds": 0.08, "end_seconds": 0.2, "confidence": 0.75}
    assert [json.loads(line) for line in lines] == [
        {"id": u.id, "reference": u.text, "hypothesis": h, "words": [word]} for u, h in PAIRS
    ]


def test_texts_are_scored_normalized_and_stored_unchanged(tmp_path):
    baseline = Baseline("other", {"u1": "THE CAT SAT DOWN", "u2": "no", "v": "x"})
    figures = evaluate(tmp_path, PAIRS, normalize=str.lower, baseline=baseline)
    # Größe is correct now.
    assert (figures["substitutions"], figures["deletions"], figures["insertions"]) == (1, 1, 1)
    expected = {"wer": 40.0, "other_wer": 20.0, "utterances": 2, "better": 1, "worse": 1}
    expected |= {"only_here": ["u3", "u4"], "only_there": ["v"]}
    assert {name: figures["comparison"][name] for name in expected} == expected
    assert '"reference": "Größe zählt doch"' in (tmp_path / "hypotheses.jsonl").read_text()
    shown = " ".join(page_of(tmp_path).words)
    assert "Compared with other" in shown and "WER 40.00 % against 20.00 %: +20.00" in shown
    with pytest.raises(ValueError, match=r"^other: recognized none of the 4 utterances$"):
        evaluate(tmp_path, PAIRS, baseline=Baseline("other", {"v": "x"}))


def test_capitals_and_punctuation_are_counted_and_ignored_side_by_side(tmp_path):
    pairs = [(utterance("u", "Yes, I can. Ok?"), "yes I can Ok"), (utterance("v", "No!"), "no")]
    figures = evaluate(tmp_path, pairs)
    assert (figures["metric"], figures["wer"]) == ("wer", 80.0)
    assert figures["wer_without_punctuation_and_case"] == 0.0
    assert figures["cer_without_punctuation_and_case"] == 0.0 < figures["cer"]
    assert figures["wer_without_punctuation_and_case_95_percent_interval"] == [0.0, 0.0]
    assert "Without punctuation and case" in " ".join(page_of(tmp_path).words)
    figures = evaluate(tmp_path, [(utterance("u", "yes i can"), "yes i can't")])
    assert figures["wer_without_punctuation_and_case"] == figures["wer"]
    assert "Without punctuation and case" not in " ".join(page_of(tmp_path).words)


def test_characters_count_first_in_scripts_without_spaces(tmp_path):
    """Spaces do not count, and the page aligns characters."""
    pairs = [
        (utterance("u1", "今天 天气很好。", speaker="a"), "今天天汽很好"),
        (utterance("u2", "你好", speaker="b"), "你 好"),
    ]
    baseline = Baseline("other", {"u1": "今天天气很好。", "u2": "好"})
    figures = evaluate(tmp_path, pairs, baseline=baseline)
    assert (figures["metric"], figures["reference_characters"]) == ("cer", 9)
    assert figures["cer"] == pytest.approx(100 * 2 / 9) and figures["wer"] == pytest.approx(400 / 3)
    assert figures["cer_without_punctuation_and_case"] == pytest.approx(100 * 1 / 8)
    counts = [wer.ErrorCounts(1, 1, 0, 7), wer.ErrorCounts(0, 0, 0, 2)]
    interval = [100 * edge for edge in wer.bootstrap_interval(counts, seed=0)]
    assert figures["cer_95_percent_interval"] == interval
    assert figures["cer_by_speaker"] == {"a": pytest.approx(200 / 7), "b": 0.0}
    assert figures["wer_by_speaker"] == {"a": 100.0, "b": 200.0}
    comparison = figures["comparison"]
    assert (comparison["better"], comparison["worse"]) == (1, 1)
    assert comparison["cer"] - comparison["other_cer"] == pytest.approx(100 / 9)
    assert comparison["difference"] == pytest.approx(100 / 9)
    page = page_of(tmp_path)
    assert page.rows[0]["text"] == ["今天天", ["气", "汽"], "很好", ["。", None]]
    assert (page.rows[1]["text"], page.rows[1]["errors"]) == (["你好"], 0)
    text = " ".join(page.words)
    assert "CER 22.22 % against 11.11 %: +11.11" in text and "CER by speaker" in text
    assert ("data-metric", "cer") in page.attributes


def test_confidence_is_the_mean_of_an_utterances_words(tmp_path):
    words = [Word("a", 0.0, 1.0, p) for p in (1.0, 0.99, 0.4)]
    transcripts = [Transcript("a", (words[0],), 0.0), Transcript("a b", tuple(words[1:]), 0.0)]
    transcripts.append(Transcript("", (), 0.0))
    utterances = [utterance(f"u{n}", "a") for n in range(3)]
    evaluation = make_evaluation(utterances=utterances, transcripts=transcripts)
    figures = report.write_evaluation(tmp_path, evaluation)
    assert figures["wer_by_confidence"] == {
        **{"98 to 100 %": 0.0, "50 to 70 %": 100.0, "no words": 100.0}
    }


def test_a_row_has_the_data_that_a_click_shows(tmp_path):
    """Times are in ms, probabilities in percent; the worst two utterances have labels."""

    def posteriors_of(utterances):
        asked.extend(utterance.id for utterance in utterances)
        return {"u1": [LabelPosterior("\u2581a", 0.4, 0.04, (0.25, 0.751))]}

    asked = []
    (tmp_path / "a b").mkdir()
    rows = [(utterance("u0", "yes", audio=tmp_path / "a b/0.wav"), "Yes"), *PAIRS]
    evaluate(
        tmp_path / "out",
        rows,
        recording_of=lambda utterance, at_most_bytes: None,
        baseline=Baseline("other", {"u0": "yes"}),
        lattices=2,
        posteriors_of=posteriors_of,
    )
    zero, one, two, *_ = page_of(tmp_path / "out").rows
    assert asked == ["u1", "u3"]
    assert one["lattice"] == [["\u2581a", 400, 40, [25, 75]]] and "lattice" not in two
    assert zero["times"] == [80, 200, 75] and zero["sure"] == 75
    assert zero["file"] == "../a%20b/0.wav"
    assert (zero["other"], zero["gain"], zero["heard"]) == ("yes", -1, ["yes"])
    assert "other" not in one and "heard" not in two  # the words equal the transcript


def test_the_page_holds_every_utterance_aligned(tmp_path):
    evaluate(tmp_path, PAIRS)
    page = page_of(tmp_path)
    for row, (source, hypothesis) in zip(page.rows, PAIRS, strict=True):
        pieces = [[p, p] if isinstance(p, str) else p for p in row["text"]]
        sides = [[p[side] for p in pieces if p[side] is not None] for side in (0, 1)]
        assert [" ".join(side) for side in sides] == [source.text, hypothesis]
        assert row["errors"] == wer.count_word_errors(source.text, hypothesis).errors
        assert row["id"] == source.id and row["seconds"] == source.duration_seconds
    assert page.rows[0]["text"] == ["the", ["cat", "hat"], "sat down", [None, "there"]]


def test_the_page_shows_the_figures_and_the_confusions(tmp_path):
    pairs = PAIRS + [(utterance(f"v{i}", "red fish"), "dead fish") for i in range(3)]
    evaluate(tmp_path, pairs, facts={"device": "one & only"}, title="a < b")
    page = page_of(tmp_path)
    text = " ".join(page.words)
    for shown in ("a < b", "one & only", "50.00", "up to 1 s", "2 to 4 s", "4 to 8 s", "8 to 16 s"):
        assert shown in text
    errors = [value for name, value in page.attributes if name == "data-find"]
    assert errors[0] == "red→dead"  # The most frequent error comes first.
    assert set(errors[1:]) == {"cat→hat", "Größe→größe", "zählt→∅", "∅→there"}


def test_bars_are_as_long_as_their_rates_and_the_worst_speakers_come_first(tmp_path):
    """Speaker n has n errors in 20 words, half of them deletions; only 12 speakers are shown."""
    words = list("abcdefghijklmnopqrst")
    pairs = [
        (
            utterance(f"u{n}", " ".join(words), speaker=f"speaker {n}"),
            " ".join(["x"] * (n // 2) + words[n:]),
        )
        for n in range(2, 18)
    ]
    evaluate(tmp_path, pairs)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    chart = html[html.index("WER by speaker") : html.index("WER by duration")]
    groups = re.findall(r"<title>speaker (\d+):(.*?)</g>", chart)
    assert [int(n) for n, _ in groups] == list(range(17, 5, -1))
    for n, group in groups:
        widths = [float(w) for w in re.findall(r'width="([\d.]+)%"', group)]
        kinds = re.findall(r'rect class="(\w+)"', group)
        starts = [float(x) for x in re.findall(r'<rect[^>]* x="([\d.]+)%"', group)]
        assert starts == pytest.approx([32 + sum(widths[:i]) for i in range(3)], abs=0.02)
        substitutions = int(n) // 2
        expected = {"sub": substitutions, "del": int(n) - substitutions, "ins": 0}
        assert {k: round(17 * w / 26, 1) for k, w in zip(kinds, widths)} == expected


def test_texts_cannot_become_markup(tmp_path):
    """The elements of the page do not depend on its texts."""

    def page(name: str, text: str) -> Page:
        word = text.split()[0]
        source = utterance(f"{word} 1", f"{text} {word}", speaker=word)
        evaluate(tmp_path / name, [(source, text)], facts={word: text}, title=text)
        return page_of(tmp_path / name)

    hostile, plain = (
        page("hostile", HOSTILE),
        page("plain", HOSTILE.translate(dict.fromkeys(b'<>&"'))),
    )
    assert hostile.tags == plain.tags and "b" in plain.tags
    (row,) = hostile.rows
    assert row["text"] == [" ".join(HOSTILE.split()), [HOSTILE.split()[0], None]]
    # Browsers, unlike this parser, also let "<!--" and "<script" change where a script ends.
    assert "<" not in hostile.scripts["rows"]
    assert hostile.scripts["program"] == plain.scripts["program"]


def test_the_page_loads_nothing_from_the_network(tmp_path):
    evaluate(tmp_path, PAIRS)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    attributes = Page(html).attributes
    assert not {"src", "srcset", "action", "data"} & {name for name, _ in attributes}
    assert [value for name, value in attributes if name == "href"] == ["data:,"]
    assert not re.search(r"https?:|@import|url\(", html)
    (policy,) = (v for name, v in attributes if name == "content" and v and "default-src" in v)
    assert "default-src 'none'" in policy


def test_recordings_are_embedded_once_the_worst_first_up_to_the_cap(tmp_path, monkeypatch):
    contents, asked = {}, []

    def recording(name: str, magic: bytes, size: int, within: Member | None = None) -> Path:
        contents[tmp_path / name, within] = magic + bytes([size]) * (size - len(magic))
        return tmp_path / name

    def stored(utterance: Utterance, at_most_bytes: int) -> bytes | None:
        asked.append(utterance.id)
        recording = contents.get((utterance.audio, utterance.within))
        return recording if recording is not None and len(recording) <= at_most_bytes else None

    shared = recording("shared", b"fLaC", 60)
    inside = [Member(512, 20), Member(1536, 25)]
    shard = [recording("shard.tar", b"OggS", one.size_bytes, one) for one in inside][0]
    pairs = [
        (utterance("right", "a b", audio=recording("right", b"RIFF", 70)), "a b"),
        (utterance("wrong", "a b", audio=recording("wrong", b"OggS", 40)), "x y"),
        (Utterance("part", shared, "a b", 2.0, offset_seconds=1.5), "a"),
        (Utterance("rest", shared, "a", 2.0, offset_seconds=3.5), "a"),
        (Utterance("member", shard, "a", 2.0, within=inside[0]), "a"),
        (Utterance("next", shard, "a", 2.0, within=inside[1]), "a"),
        (utterance("odd", "a b", audio=recording("odd", b"", 1)), "x y z"),
        (utterance("gone", "a b", audio=tmp_path / "gone.wav"), "x y z"),
    ]
    monkeypatch.setattr(report, "EMBEDDED_AUDIO_BYTES", 160)
    evaluate(tmp_path / "with", pairs, recording_of=stored)
    page = page_of(tmp_path / "with")
    audio = {row["id"]: page.scripts.get(f"audio-{row['audio']}") for row in page.rows}

    def uri(kind: str, name: str, within: Member | None = None) -> str:
        encoded = base64.b64encode(contents[tmp_path / name, within]).decode()
        return f"data:audio/{kind};base64,{encoded}"

    assert audio == {
        "right": None,
        "wrong": uri("ogg", "wrong"),
        "part": uri("flac", "shared"),
        "rest": uri("flac", "shared"),
        "member": uri("ogg", "shard.tar", inside[0]),
        "next": uri("ogg", "shard.tar", inside[1]),
        "odd": None,
        "gone": None,
    }
    assert len(asked) == len(set(asked)) == 7, "each recording is read once"
    assert sum(name.startswith("audio-") for name in page.scripts) == 4
    assert page.rows[2]["offset"] == 1.5
    assert "5 of 8 utterances" in " ".join(page.words)

    evaluate(tmp_path / "without", pairs)
    page = page_of(tmp_path / "without")
    assert all(row["audio"] is None for row in page.rows)
    assert "data:audio" not in " ".join(page.scripts.values())
    assert "of 8 utterances" not in " ".join(page.words)


def test_a_corpus_of_silence_is_null_in_json(tmp_path):
    figures = evaluate(tmp_path, [(utterance("u", "", speaker="ann"), "hm")])
    assert figures["wer"] is None and figures["cer"] is None
    assert figures["wer_95_percent_interval"] == [None, None]
    assert figures["wer_by_speaker"] == {"ann": None}
    assert (figures["insertions"], figures["sentence_error_rate"]) == (1, 100.0)
    assert json.loads((tmp_path / "wer.json").read_text()) == figures


def test_a_second_evaluation_replaces_the_first_and_leaves_nothing_else(tmp_path):
    evaluate(tmp_path, PAIRS)
    evaluate(tmp_path, PAIRS[:1])
    assert json.loads((tmp_path / "wer.json").read_text())["utterances"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {"hypotheses.jsonl", "report.html", "wer.json"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"utterances": [], "transcripts": []}, r"^utterances = \[\]: "),
        ({"transcripts": [TRANSCRIPT, TRANSCRIPT]}, r"^len\(transcripts\) = 2: .* = 1$"),
        ({"wall_seconds": 0.0}, r"^wall_seconds = 0\.0: must be positive$"),
    ],
)
def test_invalid_evaluations_are_rejected_before_writing(tmp_path, change, message):
    pair = dict(utterances=[utterance("u", "a")], transcripts=[TRANSCRIPT])
    with pytest.raises(ValueError, match=message):
        report.write_evaluation(tmp_path / "out", make_evaluation(**(pair | change)))
    assert not (tmp_path / "out").exists()


def test_references_that_cannot_be_written_are_counted():
    unknown = lambda text: "".join(sorted(set(text) - set("ABC ")))
    references = ["ABC", "abc", "AB-C", "CAF\u00c9 \u00c9", "\u092c"]
    count = functools.partial(unwritable, references, unknown_characters=unknown, characters="ABC ")
    assert count().startswith("4 of 5: ")
    named = set(count().removeprefix("4 of 5: ").split(", "))
    assert named == {f"{name!r} (1)" for name in "abc-F\u00c9\u092c"}
    # Normalization turns a to A and deletes the hyphen.
    assert count(normalize=librispeech_text) == "2 of 5: 'F' (1), '\u00c9' (1), '\u092c' (1)"
    assert unwritable(["ABC"], unknown_characters=unknown, characters="ABC ") == ""
    many = unwritable(["abcdefghijklmnopqrstuvwxyz"], unknown_characters=unknown, characters="A")
    assert many.startswith("1 of 1: 'a' (1), ") and many.endswith(" and 6 more")
