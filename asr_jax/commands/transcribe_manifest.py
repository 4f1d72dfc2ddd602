"""`asr-jax transcribe --manifest`: recognized texts as a manifest to train on."""

from collections.abc import Sequence
from pathlib import Path

from asr_jax.commands.manifest_file import ManifestEntry, write_manifest_file
from asr_jax.decoding.word_groups import word_groups
from asr_jax.types import Transcript, Utterance


def write_manifest(
    path: Path,
    recordings: Sequence[tuple[Utterance, Transcript]],
    *,
    max_seconds: float,
    min_confidence: float,
) -> str:
    """Write the manifest and return its summary.

    Every line is an utterance of at most `max_seconds` (`word_groups`) with its confidence. Those
    without words, longer or below `min_confidence` are left out.
    """
    entries: list[ManifestEntry] = []
    silent = too_long = doubtful = 0
    for utterance, transcript in recordings:
        groups = word_groups(
            transcript.words,
            duration_seconds=utterance.duration_seconds,
            max_seconds=max_seconds,
        )
        silent += not groups
        for group in groups:
            duration = round(group.end_seconds - group.start_seconds, 3)
            if duration > max_seconds:
                too_long += 1
            elif group.confidence < min_confidence:
                doubtful += 1
            else:
                entries.append(
                    ManifestEntry(
                        utterance.audio,
                        group.start_seconds,
                        duration,
                        group.text,
                        round(group.confidence, 4),
                    )
                )
    write_manifest_file(path, entries)
    left_out = [
        f"{number} {reason}"
        for number, reason in (
            (silent, "without words"),
            (doubtful, f"below confidence {min_confidence:g}"),
            (too_long, f"longer than {max_seconds:g} s without a pause"),
        )
        if number
    ]
    seconds = sum(entry.duration_seconds for entry in entries)
    return f"{path}: {len(entries)} utterances, {seconds / 3600:.2f} hours" + (
        f"; left out: {', '.join(left_out)}" if left_out else ""
    )
