"""Utterances that cannot be trained on are left out, each with its reason."""

from pathlib import Path

import numpy as np

from asr_jax.data.selection import Limits, select_utterances
from asr_jax.text import Tokenizer
from asr_jax.types import Utterance


def test_selection_gives_each_reason(tmp_path):
    tokenizer = Tokenizer.train(
        ["ABCDE F"], kind="char", vocabulary_size=0, path=tmp_path / "tokenizer.model"
    )
    base = Utterance("good", Path("a.wav"), "AB", 2.0)
    utterances = [
        base,
        base._replace(id="empty", text=""),
        base._replace(id="characters", text="ABÉ?"),
        base._replace(id="reserved", text="A\0B\u2581?"),
        base._replace(id="short", duration_seconds=0.04),
        base._replace(id="doubtful", confidence=0.69),
        base._replace(id="certain", confidence=0.7),
        base._replace(id="frame", duration_seconds=0.09),
        base._replace(id="long", duration_seconds=16.01),
        base._replace(id="at the edge", duration_seconds=16.0, text="ABCDEABCDE"),
        base._replace(id="labels", text="ABCDEABCDEA"),
        base._replace(id="ctc holds it", text="ABCDE", duration_seconds=0.5),
        base._replace(id="ctc repeats", text="ABBDE", duration_seconds=0.5),
    ]

    def select(ctc: str) -> tuple[list[Utterance], list[np.ndarray], dict[str, str]]:
        selected, labels, skipped = select_utterances(
            utterances,
            tokenizer,
            min_seconds=0.05,
            min_confidence=0.7,
            limits=Limits(16.0, 10),
            frames_of=lambda seconds: (seconds * 10).astype(int),
            ctc=ctc,
        )
        return selected, labels, {one.id: one.reason for one in skipped}

    selected, labels, reasons = select(ctc="alone")
    trained_on = ["good", "certain", "at the edge", "ctc holds it"]
    assert [utterance.id for utterance in selected] == trained_on
    assert [tokenizer.decode(ids) for ids in labels] == [utterance.text for utterance in selected]
    assert all(ids.dtype == np.int32 for ids in labels)
    of_any_model = {
        "empty": "empty transcript",
        "characters": "characters that the tokenizer lacks: ?É",
        "reserved": "characters that no tokenizer can hold: U+0000, U+2581",
        "short": "shorter than 0.05 s: 0.04 s",
        "doubtful": "confidence below 0.7: 0.6900",
        "frame": "too short for one frame: 0.09 s",
        "long": "longer than the last bucket's 16 s: 16.01 s",
        "labels": "more labels than the last bucket's 10: 11",
    }
    assert reasons == of_any_model | {
        "ctc repeats": "too short for its text in the CTC loss: needs 6 frames, has 5",
    }
    # Other losses train on an utterance that an auxiliary CTC head cannot align.
    selected, _, reasons = select(ctc="auxiliary")
    assert [utterance.id for utterance in selected] == [*trained_on, "ctc repeats"]
    assert reasons == of_any_model | {
        "ctc repeats": "too short for its text in the CTC loss, trained without it: "
        "needs 6 frames, has 5",
    }
    selected, _, reasons = select(ctc="none")
    assert [utterance.id for utterance in selected] == [*trained_on, "ctc repeats"]
    assert reasons == of_any_model
