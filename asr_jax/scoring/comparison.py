"""What another run or decoder recognised, read from its evaluation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from asr_jax.scoring.evaluation import Baseline
from asr_jax.types import Utterance


def is_evaluation(folder: Path) -> bool:
    return (folder / "hypotheses.jsonl").is_file()


def read_baseline(
    folder: Path, utterances: Sequence[Utterance], normalize: Callable[[str], str]
) -> Baseline:
    """The hypotheses of the evaluation in `folder`.

    Raises ValueError, naming the line, for a file that is damaged, and for an utterance that is
    not what it is in `utterances`: one of the same id and another text.
    """
    path = folder / "hypotheses.jsonl"
    expected = {utterance.id: normalize(utterance.text) for utterance in utterances}
    hypotheses = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            id, reference, hypothesis = (entry[k] for k in ("id", "reference", "hypothesis"))
            if not all(isinstance(one, str) for one in (id, reference, hypothesis)):
                raise TypeError
            reference = normalize(reference)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}:{number}: must be an object with texts id, reference and hypothesis"
            ) from error
        if expected.get(id, reference) != reference:
            raise ValueError(
                f"{path}:{number}: {id} is {reference!r} there and {expected[id]!r} in --data: "
                "other data"
            )
        hypotheses[id] = hypothesis
    if not expected.keys() & hypotheses.keys():
        raise ValueError(f"{path}: has none of the utterances of --data")
    return Baseline(str(folder), hypotheses)
