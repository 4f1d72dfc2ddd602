"""Texts for a language model: how they are read, and the batches that they make."""

import collections
import gzip
import itertools
import json

import numpy as np
import pytest
import soundfile

from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.epochs import Epochs
from asr_jax.data.texts import (
    evaluation_text_batches,
    read_texts,
    text_plan,
    training_text_batches,
)

BUCKETS = Buckets(seconds=(1.0, 2.0), labels=(3, 6), utterances=(4, 2))
GENERATOR = np.random.default_rng(0)
LABELS = [
    GENERATOR.integers(1, 9, length).astype(np.int32) for length in GENERATOR.integers(1, 7, 23)
]


def texts_of(batch):
    return [
        (int(n), batch.labels[row, : batch.label_lengths[row]].tolist())
        for row, n in enumerate(batch.utterances)
        if n >= 0
    ]


def take(number, *, seed, cache_path=None, **options):
    plan = text_plan(Corpus([], LABELS), buckets=BUCKETS, seed=seed)
    epochs = Epochs(plan, cache_path=cache_path)
    return list(itertools.islice(training_text_batches(LABELS, epochs, **options), number))


def test_every_epoch_has_every_text_once_in_its_own_order():
    batches, epochs, seen = take(60, seed=3), [], []
    for batch in batches:
        assert batch.samples.shape[1] == 0
        assert batch.labels.shape in {(4, 3), (2, 6)}
        for n, labels in texts_of(batch):
            assert labels == LABELS[n].tolist()
            if len(seen) == len(LABELS):
                epochs, seen = [*epochs, seen], []
            assert n not in seen
            seen.append(n)
        assert (batch.labels[batch.utterances < 0] == 0).all()
    assert len(epochs) >= 3 and epochs[0] != epochs[1]
    assert take(60, seed=4)[0].utterances.tolist() != batches[0].utterances.tolist()


def test_stream_resumes_at_any_position_and_is_shared_by_processes(tmp_path):
    batches = take(30, seed=3, cache_path=tmp_path / "epochs.json")
    for position in (1, 13, 29):
        (batch,) = take(1, seed=3, position=position, cache_path=tmp_path / "epochs.json")
        for value, expected_value in zip(batch, batches[position]):
            np.testing.assert_array_equal(value, expected_value)
    halves = [
        take(30, seed=3, local_rows=lambda rows, start=start: np.arange(start, rows, 2))
        for start in (0, 1)
    ]
    for whole, *parts in zip(batches, *halves):
        for start, part in enumerate(parts):
            np.testing.assert_array_equal(part.labels, whole.labels[start::2])


def test_evaluation_has_every_text_once():
    batches = evaluation_text_batches(LABELS, buckets=BUCKETS)
    counts = collections.Counter(n for batch in batches for n, _ in texts_of(batch))
    assert counts == collections.Counter(range(len(LABELS)))


def test_reads_text_files_compressed_text_files_and_transcripts(tmp_path):
    text = "ONE  TWO\n\n THREE \n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    soundfile.write(tmp_path / "one.flac", np.zeros(4800), 16_000)
    (tmp_path / "c.jsonl").write_text(json.dumps({"audio_filepath": "one.flac", "text": "SIX"}))
    for name, expected in [
        ("a.txt", [("a.txt:1", "ONE TWO"), ("a.txt:3", "THREE")]),
        ("b.txt.gz", [("b.txt.gz:1", "ONE TWO"), ("b.txt.gz:3", "THREE")]),
        ("c.jsonl", [("one.flac", "SIX")]),
    ]:
        utterances, skipped = read_texts(tmp_path / name)
        assert [(u.id, u.text) for u in utterances] == expected and not skipped


@pytest.mark.parametrize(
    "contents, wrong",
    [(b" \n\n", "holds no text"), (b"\xff\xfe", "not UTF-8 text"), (None, "No such")],
)
def test_unusable_text_files_are_named(tmp_path, contents, wrong):
    path = tmp_path / "a.txt"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ValueError, match=f"^{path}: {wrong}"):
        read_texts(path)
