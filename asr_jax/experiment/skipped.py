"""Utterances that are left out of training: they are counted and listed in RUN/skipped.jsonl."""

import collections
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from asr_jax.config import Config
from asr_jax.data.corpus import Corpus
from asr_jax.data.pipeline import Batches
from asr_jax.data.selection import WITHOUT_CTC
from asr_jax.text_files import one_line
from asr_jax.types import Batch, Skipped


def skipped_list(run: Path) -> Path:
    """Return the file in which this process lists what it leaves out."""
    index = jax.process_index()
    return run / (f"skipped-{index}.jsonl" if index else "skipped.jsonl")


def list_skipped(corpus: Corpus, run: Path, *, resumed: bool, note: Callable[[str], None]) -> None:
    """List the utterances that the corpus leaves out, or that earlier starts could not read.

    Unless the run is `resumed` from a checkpoint, earlier starts do not count.
    """
    listed = skipped_list(run)
    # An earlier start may have read a recording to the end and found an error there.
    usable = {u.id for u in corpus.utterances} - {s.id for s in corpus.skipped}
    earlier = [skipped for skipped in _listed(listed) if skipped.id in usable and resumed]
    unfit = corpus.skipped if jax.process_index() == 0 else []
    listed.write_text(_json_lines([*unfit, *earlier]), encoding="utf-8")
    kinds = collections.Counter(s.reason.partition(":")[0] for s in corpus.skipped)
    for kind, number in kinds.most_common():
        prefix = "" if kind == WITHOUT_CTC else "left out: "
        note(f"{prefix}{number} utterances, {kind} (listed in {listed})")
    if not earlier and not set(kinds) - {WITHOUT_CTC}:
        note(f"left out: none of {len(corpus.utterances) + len(corpus.held_out)} utterances")


def describe_held_out(corpus: Corpus) -> str:
    """Return a line on the utterances that stand for data.dev."""
    held_out, trained_on = corpus.held_out, {u.speaker for u in corpus.utterances}
    minutes = sum(utterance.duration_seconds for utterance in held_out) / 60
    speakers = {utterance.speaker for utterance in held_out}
    of = f" of {len(speakers)} speakers" * speakers.isdisjoint(trained_on)
    return (
        f"held out to measure the WER, as data.dev is empty: {len(held_out)} recordings{of}, "
        f"{minutes:.1f} minutes"
    )


def print_left_out(name: str, skipped: Sequence[Skipped]) -> None:
    """Print a line for every kind of reason, on the first process."""
    if jax.process_index() > 0:
        return
    kinds: dict[str, list[Skipped]] = {}
    for utterance in skipped:
        kinds.setdefault(utterance.reason.partition(":")[0], []).append(utterance)
    for alike in kinds.values():
        first = f"{alike[0].id}: {alike[0].reason}"
        more = f" (and {len(alike) - 1} more)" if len(alike) > 1 else ""
        print(one_line(f"{name}: left out: {first}{more}"), file=sys.stderr)


def readable_batches(
    batches: Batches, config: Config, *, listed: Path, note: Callable[[str], None]
) -> Iterator[Batch]:
    """Yield the batches; report and list each recording that cannot be read.

    Raises ValueError if several batches in a row have no readable recording: a disk may be gone.
    """
    known = empty = 0
    listed_ids = {skipped.id for skipped in _listed(listed)}
    for batch in batches:
        failed = batches.failed
        if unlisted := [skipped for skipped in failed[known:] if skipped.id not in listed_ids]:
            with listed.open("a", encoding="utf-8") as file:
                file.write(_json_lines(unlisted))
        for skipped in failed[known:]:
            note(one_line(f"left out: {skipped.id}, {skipped.reason} (listed in {listed})"))
        known = len(failed)
        empty = 0 if np.any(batch.utterances >= 0) else empty + 1
        if empty == config.train.max_skipped_in_a_row:
            raise ValueError(
                f"data.train = {config.data.train}: {empty} batches in a row had no recording that "
                f"can be read, most recently {failed[-1].id}: {failed[-1].reason}"
            )
        yield batch


def _listed(path: Path) -> list[Skipped]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    skipped = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the incomplete last line of a killed process
            skipped.append(Skipped(**json.loads(line)))
    return skipped


def _json_lines(skipped: Sequence[Skipped]) -> str:
    return "".join(json.dumps(utterance.listed()) + "\n" for utterance in skipped)
