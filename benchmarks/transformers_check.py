"""Load what `asr-jax export --format transformers|nemo` wrote by transformers and torch.

    python benchmarks/transformers_check.py EXPORT RECORDING [EXPECTED_TEXT]

EXPORT is a folder of transformers, or a .nemo archive. Prints missing and unexpected names, which
must be none, the transcript, and how many of the tokenizer's encodings of the words of a text
differ from SentencePiece's. Needs `pip install torch==2.13.0 transformers==5.24.0 librosa`, in an
environment of its own.
"""

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import sentencepiece
import soundfile
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]

TEXTS = ("ERASE X B M N T FOUR ONE OH NINE", "one two three", "Hello, it's 5 o'clock.", "a  b")


def check_folder(folder: Path, recording: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    problems = {name: sorted(value) for name, value in info.items() if value}
    print(f"{folder}: {type(model).__name__}, problems: {problems or 'none'}")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    original = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    encode = processor.tokenizer.encode
    differ = [t for t in TEXTS if encode(t, add_special_tokens=False) != original.encode(t)]
    print(f"{len(differ)} of {len(TEXTS)} encodings differ {differ}")
    samples, rate_hz = soundfile.read(recording, dtype="float32")
    inputs = processor(samples, sampling_rate=rate_hz, return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs)
    ids = output if isinstance(output, torch.Tensor) else output.sequences
    print(processor.batch_decode(ids, skip_special_tokens=True)[0])


def check_archive(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path) as archive:
        archive.extract("./model_weights.ckpt", folder, filter="data")
        state = torch.load(Path(folder) / "model_weights.ckpt", weights_only=True)
    print(f"{path}: torch reads {len(state)} tensors of {sum(x.numel() for x in state.values())}")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    check_archive(path) if path.suffix == ".nemo" else check_folder(path, sys.argv[2])
