"""Accuracy, memory and time of `asr-jax segment` with a trained model.

    python benchmarks/segment.py RUN [--data DATA ...] [--hour] [--keep FOLDER]

The recordings of DATA (default: AN4's dev and test) are joined in three random orders, with pauses
of 0.3 to 1.5 s that hold noise, whose level is drawn between 25 and 45 dB below the speech. Their
texts are joined to lines of 80 characters, whatever the utterances are, after 0, 10 or 30 % of the
words were changed: a third each is replaced by another word of the corpus, left out, and preceded
by an added word. Each order and rate has a line of JSON with

    utterances: those joined, and those found
    start_end_error_ms: the distance of each found start and end from the nearest true start or end
        of speech; median and 95th percentile
    outside_pause_ms: the same distance to the nearest pause, which is 0 within it
    precision: of the starts and ends found, those in a true pause (or at most 100 ms outside it)
    recall: of the true pauses, those with a start or end found in them
    wer_kept: WER of the manifest against the true words that its utterances cover
    confidence: mean confidence of utterances with their true words, and of others; how often the
        former have the higher one (AUC)

True starts and ends of speech are measured in each recording before it is joined: the start of the
first sound and the end of the last one of at least 60 ms, whose frames of 10 ms are louder than the
mean of the levels (in dB) of the quietest tenth and of the loudest twentieth. Clicks and breath,
with which every second recording of AN4 begins, are shorter or softer.
With --hour, the recordings are repeated to an hour: peak memory and time.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from asr_jax.data.manifest import read_transcribed
from asr_jax.data.recordings import read_recording
from asr_jax.scoring.wer import word_error_rate

RATE_HZ = 16_000
TOLERANCE_SECONDS = 0.1
# Shorter sounds are clicks.
LEAST_FRAMES = 6


class Joined(NamedTuple):
    """A long recording with known utterances."""

    path: Path
    texts: list[str]
    speech: list[tuple[float, float]]
    """Start and end of speech in seconds of each utterance."""


def main() -> None:
    parser = argparse.ArgumentParser(
        usage=str(__doc__), formatter_class=argparse.RawTextHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", nargs="+", default=["samples/an4/dev", "samples/an4/test"])
    parser.add_argument("--hour", action="store_true")
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    utterances = [u for data in options.data for u in read_transcribed(data, "--data")[0]]
    recordings = [
        (u.text, u.speaker, read_recording(u, sample_rate_hz=RATE_HZ)) for u in utterances
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.hour:
            total = sum(len(samples) for _, _, samples in recordings) / RATE_HZ
            recordings *= round(3600 / (total + 0.9 * len(recordings))) + 1
            joined = join(recordings, folder / "hour.flac", seed=0)
            measure(options.run, joined, 0.1, folder, seed=0)
            return
        for seed in range(3):
            joined = join(recordings, folder / f"order{seed}.flac", seed=seed)
            for rate in (0.0, 0.1, 0.3):
                measure(options.run, joined, rate, folder, seed=seed)


def speech_edges(samples: np.ndarray) -> tuple[float, float]:
    """Return start and end of the speech in a recording, in seconds."""
    change = np.diff(samples, prepend=samples[:1])
    frames = len(change) // (RATE_HZ // 100)
    powers = (change[: frames * RATE_HZ // 100].reshape(frames, -1) ** 2).mean(1)
    levels = 10 * np.log10(powers + 1e-10)
    low, high = np.percentile(levels, [10, 95])
    is_loud = levels > (low + high) / 2
    edges = np.flatnonzero(np.diff(np.pad(is_loud, 1).astype(int))).reshape(-1, 2)
    lasting = edges[edges[:, 1] - edges[:, 0] >= LEAST_FRAMES]
    return lasting[0, 0] / 100, lasting[-1, 1] / 100


def join(recordings: Sequence[tuple[str, str, np.ndarray]], path: Path, *, seed: int) -> Joined:
    """Write the recordings in a random order, with pauses of noise before, between and after."""
    rng = np.random.default_rng(seed)
    parts, texts, speech, at = [], [], [], 0
    for number in rng.permutation(len(recordings)):
        text, _, samples = recordings[number]
        power = np.sqrt(np.mean(samples**2))
        noise = rng.standard_normal(round(rng.uniform(0.3, 1.5) * RATE_HZ)).astype(np.float32)
        parts += [noise * power * 10 ** (-rng.uniform(25, 45) / 20), samples]
        at += len(noise)
        start, end = speech_edges(samples)
        texts.append(text)
        speech.append((at / RATE_HZ + start, at / RATE_HZ + end))
        at += len(samples)
    soundfile.write(path, np.clip(np.concatenate(parts), -1, 1), RATE_HZ)
    return Joined(path, texts, speech)


def corrupted(texts: Sequence[str], rate: float, *, seed: int) -> list[str]:
    """Return the words of the texts, of which `rate` are replaced, left out or added to."""
    chance = random.Random(seed)
    vocabulary = sorted({word for text in texts for word in text.split()})
    words = []
    for word in (word for text in texts for word in text.split()):
        kind = chance.choice(["replace", "drop", "add"]) if chance.random() < rate else "keep"
        if kind in ("replace", "add"):
            words.append(chance.choice(vocabulary))
        if kind in ("keep", "add"):
            words.append(word)
    return words


def measure(run: Path, joined: Joined, rate: float, folder: Path, *, seed: int) -> None:
    words = corrupted(joined.texts, rate, seed=seed)
    text, out = folder / "text.txt", folder / f"{joined.path.stem}-{rate:g}.jsonl"
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > 80:
            lines.append(line)
            line = ""
        line += f"{word.lower()} "
    text.write_text("\n".join([*lines, line]), encoding="utf-8")
    began = time.monotonic()
    command = [sys.executable, "-m", "asr_jax", "segment", run, joined.path]
    subprocess.run(
        [*map(str, command), "--text", str(text), "--output", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.monotonic() - began
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    figures = {
        "recording": joined.path.stem,
        "hours": round(soundfile.info(joined.path).duration / 3600, 3),
        "changed_words": rate,
        "utterances": [len(joined.texts), len(found)],
        **compare(joined, found),
        "seconds": round(seconds, 1),
        "peak_gib": round(peak, 2),
    }
    print(json.dumps(figures), flush=True)


def compare(joined: Joined, found: Sequence[dict]) -> dict[str, object]:
    starts, ends = (np.array(edges) for edges in zip(*joined.speech))
    duration = soundfile.info(joined.path).duration
    pauses = np.stack([np.append(0.0, ends), np.append(starts, duration)], axis=1)
    found_starts = np.array([u["offset"] for u in found])
    found_ends = np.array([u["offset"] + u["duration"] for u in found])
    errors = np.concatenate([nearest(found_starts, starts), nearest(found_ends, ends)])
    edges = np.concatenate([found_starts, found_ends])
    beyond = np.maximum(pauses[:, 0] - edges[:, None], edges[:, None] - pauses[:, 1])
    outside = np.maximum(beyond, 0).min(1)
    in_pause = np.any(beyond <= TOLERANCE_SECONDS, axis=0)[1:-1]
    inside = [  # true utterances by the utterance found that holds their middle
        np.flatnonzero(((starts + ends) / 2 > a) & ((starts + ends) / 2 < b))
        for a, b in zip(found_starts, found_ends)
    ]
    truths = [" ".join(joined.texts[n] for n in numbers) for numbers in inside]
    texts = [u["text"].upper() for u in found]
    is_right = np.array([a == b for a, b in zip(truths, texts)])
    confidences = np.array([u["confidence"] for u in found])
    right, wrong = confidences[is_right], confidences[~is_right]
    higher = (right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)
    return {
        "start_end_error_ms": milliseconds(errors),
        "outside_pause_ms": milliseconds(outside),
        "precision": round(float(np.mean(outside <= TOLERANCE_SECONDS)), 3),
        "recall": round(float(np.mean(in_pause)), 3),
        "wer_kept": round(word_error_rate(truths, texts), 3),
        "confidence": [round(float(np.mean(x)), 3) if len(x) else None for x in (right, wrong)],
        "auc": round(float(higher.mean()), 3) if higher.size else None,
    }


def nearest(times: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.abs(times[:, None] - true).min(1)


def milliseconds(errors: np.ndarray) -> list[int]:
    """Return median and 95th percentile."""
    return [round(1000 * float(np.quantile(errors, q))) for q in (0.5, 0.95)]


if __name__ == "__main__":
    main()
