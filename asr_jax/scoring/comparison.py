"""Hypotheses of another run or decoder, read from its evaluation."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from asr_jax.scoring.evaluation import Baseline
from asr_jax.text_files import escaped, numbered_lines, transcript
from asr_jax.types import Utterance


def is_evaluation(folder: Path) -> bool:
    return (folder / "hypotheses.jsonl").is_file()


def read_baseline(
    folder: Path, utterances: Sequence[Utterance], normalize: Callable[[str], str]
) -> Baseline:
    """Read the hypotheses of the evaluation in `folder`.

    Raises ValueError, naming the line, for a damaged file, and for an utterance whose reference
    differs from the one in `utterances`.
    """
    path = folder / "hypotheses.jsonl"
    expected = {utterance.id: normalize(utterance.text) for utterance in utterances}
    hypotheses = {}
    for number, line in numbered_lines(path):
        try:
            entry = json.loads(line, strict=False)
            id, reference, hypothesis = (entry[k] for k in ("id", "reference", "hypothesis"))
            if not all(isinstance(text, str) for text in (id, reference, hypothesis)):
                raise TypeError
            id, reference = escaped(id), normalize(transcript(reference))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}:{number}: must be an object with strings id, reference and hypothesis"
            ) from error
        if expected.get(id, reference) != reference:
            raise ValueError(
                f"{path}:{number}: reference {reference!r} of {id} must be {expected[id]!r}, as in "
                "--data; compare with an evaluation of that dataset"
            )
        hypotheses[id] = transcript(hypothesis)
    if not expected.keys() & hypotheses.keys():
        raise ValueError(f"{path}: contains none of the utterances of --data")
    return Baseline(str(folder), hypotheses)
