"""Re-encodes a folder in LibriSpeech layout as Ogg Opus: python samples/encode_opus.py SOURCE OUT

Recordings become .ogg files of the same name, about a quarter of the size of FLAC; everything
else (transcripts, licence, lists) is copied byte for byte. Opus keeps the number of samples.
"""

import shutil
import sys
from pathlib import Path

import soundfile

AUDIO_SUFFIXES = {".flac", ".wav"}
# libsndfile's scale from 0 (largest) to 1 (smallest); this is about 27 kbit/s for 16 kHz speech.
COMPRESSION_LEVEL = 0.92


def encode_opus(source: Path, out: Path) -> int:
    """Writes the folder `source` to `out` and returns the number of recordings."""
    files = sorted(path for path in source.rglob("*") if path.is_file())
    recordings = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    if not recordings:
        raise ValueError(f"{source}: no .flac or .wav files found in it")
    for path in files:
        target = out / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() not in AUDIO_SUFFIXES:
            shutil.copyfile(path, target)
            continue
        samples, sample_rate_hz = soundfile.read(path, dtype="float32")
        soundfile.write(
            target.with_suffix(".ogg"),
            samples,
            sample_rate_hz,
            format="OGG",
            subtype="OPUS",
            compression_level=COMPRESSION_LEVEL,
        )
    return len(recordings)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python samples/encode_opus.py SOURCE OUT")
    try:
        print(encode_opus(Path(sys.argv[1]), Path(sys.argv[2])), "recordings")
    except ValueError as error:
        sys.exit(str(error))
