"""Count the wrong texts that the page of `asr-jax prepare` lists.

    python benchmarks/exchanged_texts.py DATA ...

The texts of 20 recordings are exchanged in pairs, with three seeds.
"""

import random
import sys

import numpy as np

from asr_jax.data.manifest import read_manifest
from asr_jax.data.recording_checks import checked_recording
from asr_jax.survey.findings import UNLIKELY
from asr_jax.survey.gathered import Survey
from asr_jax.survey.rows import rate_deviations
from asr_jax.types import Skipped

EXCHANGED = 20


def surveyed(data: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the figures of each usable recording, and the length of its text."""
    survey, lengths = Survey(), []
    for utterance in read_manifest(data)[0]:
        checked = checked_recording(utterance, min_seconds=0.1, max_seconds=float("inf"))
        if not isinstance(checked, Skipped):
            usable, levels = checked
            survey.add(usable.duration_seconds, levels)
            lengths.append(len(usable.text))
    return survey.rows, np.array(lengths, float)


def main() -> None:
    for data in sys.argv[1:]:
        rows, lengths = surveyed(data)
        unlikely = lambda lengths: np.abs(rate_deviations(rows, lengths)) > UNLIKELY
        print(f"{data}: {len(rows)} recordings, {unlikely(lengths).sum()} listed as they are")
        for seed in range(3):
            picked = random.Random(seed).sample(range(len(rows)), EXCHANGED)
            partners = [n for pair in zip(picked[1::2], picked[::2]) for n in pair]
            changed = lengths.copy()
            changed[picked] = lengths[partners]
            listed = unlikely(changed)
            found = listed[picked].sum()
            print(f"seed {seed}: {found} of {EXCHANGED} listed, {listed.sum() - found} others")


if __name__ == "__main__":
    main()
