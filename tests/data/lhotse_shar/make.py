"""Makes the Shar beside this file, by Lhotse's own writer.

    pip install lhotse==1.33.0 torch==2.13.0 soundfile requests
    python tests/data/lhotse_shar/make.py

The cuts have the shortest recordings of samples/an4/dev: two of them whole, two as parts of the
second channel of one file, where a single cut has both, and one cut has no recording. Two custom
fields, a recording and a value, are not for training.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter

HERE = Path(__file__).parent
DEV = HERE.parents[2] / "samples/an4/dev"
RATE_HZ = 16_000


def supervision(path: Path, start: float, channel: int = 0) -> SupervisionSegment:
    """Return the transcript of a recording that is in a cut from `start` on."""
    speaker, chapter = path.parts[-3:-1]
    lines = (path.parent / f"{speaker}-{chapter}.trans.txt").read_text().splitlines()
    (text,) = (line.split(maxsplit=1)[1] for line in lines if line.startswith(path.stem + " "))
    seconds = soundfile.info(path).duration
    return SupervisionSegment(
        path.stem, "r", start, seconds, channel=channel, text=text, speaker=speaker
    )


def cut_of(path: Path, supervisions: list[SupervisionSegment], channel: int = 0) -> MonoCut:
    """Return a cut of a whole recording."""
    recording = Recording.from_file(path)
    seconds = recording.duration
    return MonoCut(f"cut-{path.stem}", 0, seconds, channel, supervisions, recording=recording)


def main() -> None:
    shortest = sorted(DEV.rglob("*.ogg"), key=lambda path: (soundfile.info(path).frames, path))
    cuts = [cut_of(path, [supervision(path, 0.0)]) for path in shortest[:2]]
    cuts.append(MonoCut("cut-silent", 0, 1.0, 0, [supervision(shortest[0], 0.0)]))
    with tempfile.TemporaryDirectory() as folder:
        parts = [soundfile.read(path)[0] for path in shortest[2:4]]
        silence = np.zeros(RATE_HZ // 10)
        joined = np.concatenate([silence, parts[0], silence, parts[1]])
        both = np.stack([np.full_like(joined, 0.5), joined], axis=1)
        soundfile.write(Path(folder) / "both.wav", both, RATE_HZ)
        starts = itertools.accumulate([0.1, len(parts[0]) / RATE_HZ + 0.1])
        supervisions = [supervision(path, at, 1) for path, at in zip(shortest[2:4], starts)]
        cut = cut_of(Path(folder) / "both.wav", supervisions, channel=1)
        cuts.append(cut.truncate(offset=0.05, preserve_id=True))
        for cut in cuts:
            cut.note = "not for training"
            if cut.has_recording:
                cut.target_audio = cut.recording
        fields = {"recording": "flac", "target_audio": "mp3", "note": "jsonl"}
        with SharWriter(HERE, fields=fields, shard_size=2) as writer:
            for cut in cuts:
                writer.write(cut)


if __name__ == "__main__":
    main()
