"""Measure the page of `asr-jax prepare` on made-up recordings, without reading audio.

    python benchmarks/data_page.py [RECORDINGS]

The default is the number of utterances of LibriSpeech. Every tenth recording is a finding.
"""

import resource
import sys
import time
from pathlib import Path

import numpy as np

from asr_jax.audio.levels import Levels
from asr_jax.survey.gathered import Survey
from asr_jax.survey.page import render_data_page
from asr_jax.types import Utterance

WORDS = [f"{start}{end}" for start in ("ba", "de", "ki", "lo", "nu") for end in "aeiousth"]


def peak_mib() -> float:
    """Return the largest amount of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def made_up(number: int, random: np.random.Generator) -> tuple[Utterance, Levels]:
    """Return a recording of 1 to 35 s with 15 characters a second, and its levels."""
    seconds = float(random.uniform(1, 35))
    words = random.choice(WORDS, round(4 * seconds))
    odd = number % 10 == 0
    text = " ".join(words[: len(words) // 2] if odd else words)
    levels = Levels(
        rate_hz=16_000,
        channels=1,
        rms=0.05,
        peak=1e-4 if odd else 0.5,
        clipped=0.01 if odd else 0.0,
        leading_seconds=0.3,
        trailing_seconds=0.2,
        digest=random.bytes(16) if number % 7 else bytes(16),
    )
    return Utterance(f"{number}", Path("a.flac"), text, seconds, f"{number % 2000}"), levels


def main() -> None:
    recordings = int(sys.argv[1]) if len(sys.argv) > 1 else 281_241
    random, survey, utterances, adding_seconds = np.random.default_rng(0), Survey(), [], 0.0
    for number in range(recordings):
        utterance, levels = made_up(number, random)
        utterances.append(utterance)
        start = time.process_time()
        survey.add(utterance.duration_seconds, levels)
        adding_seconds += time.process_time() - start
    before, start = peak_mib(), time.process_time()
    html = render_data_page("made up", utterances, survey, "", lambda utterance: None)
    print(
        f"{recordings:,} recordings: noted in {adding_seconds:.1f} s of processor time and "
        f"{survey.rows.nbytes / 2**20:.1f} MiB; page of {len(html) / 1024:,.0f} KiB in "
        f"{time.process_time() - start:.1f} s, for which the peak of memory rose by "
        f"{peak_mib() - before:.0f} MiB from {before:.0f} MiB"
    )


if __name__ == "__main__":
    main()
