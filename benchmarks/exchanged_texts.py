"""Count the wrong texts that the page of `asr-jax prepare` lists.

    python benchmarks/exchanged_texts.py DATA ...

The texts of 20 recordings are exchanged in pairs, with three seeds.
"""

import random
import sys

from asr_jax.data.manifest import read_manifest
from asr_jax.data.recording_checks import checked_entry
from asr_jax.survey.rows import Row, unlikely_texts
from asr_jax.types import Skipped

EXCHANGED = 20


def rows_of(data: str) -> list[Row]:
    """Return the facts on each recording that can be stored."""
    rows = []
    for utterance in read_manifest(data)[0]:
        checked = checked_entry(utterance, min_seconds=0.1, max_seconds=float("inf"))
        if not isinstance(checked, Skipped):
            entry, levels = checked
            seconds = entry.duration_seconds
            rows.append(Row(entry.id, entry.text, entry.speaker, seconds, levels))
    return rows


def main() -> None:
    for data in sys.argv[1:]:
        rows = rows_of(data)
        print(f"{data}: {len(rows)} recordings, {len(unlikely_texts(rows))} listed as they are")
        for seed in range(3):
            picked = random.Random(seed).sample(range(len(rows)), EXCHANGED)
            changed = list(rows)
            for one, other in zip(picked[::2], picked[1::2]):
                changed[one] = rows[one]._replace(text=rows[other].text)
                changed[other] = rows[other]._replace(text=rows[one].text)
            listed = {row.id for row, _ in unlikely_texts(changed)}
            found = sum(rows[n].id in listed for n in picked)
            print(f"seed {seed}: {found} of {EXCHANGED} listed, {len(listed) - found} others")


if __name__ == "__main__":
    main()
