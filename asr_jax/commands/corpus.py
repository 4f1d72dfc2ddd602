"""What a run trains on: the utterances of data.train that can be used, and their labels."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asr_jax.commands.processes import on_first
from asr_jax.config import Config
from asr_jax.data.manifest import read_manifest, select_utterances
from asr_jax.features.frames import frame_count
from asr_jax.layers.length import halved
from asr_jax.text import Tokenizer
from asr_jax.types import Skipped, Utterance


class Corpus(NamedTuple):
    utterances: list[Utterance]
    labels: list[np.ndarray]
    skipped: list[Skipped]

    def fingerprint(self) -> str:
        """Of all that the plan of batches depends on: another one makes other batches."""
        digest = hashlib.sha256()
        for utterance, ids in zip(self.utterances, self.labels):
            digest.update(f"{utterance.id} {utterance.duration_seconds!r} ".encode())
            digest.update(ids.tobytes())
        return digest.hexdigest()


def training_corpus(config: Config, run: Path) -> tuple[Corpus, Tokenizer]:
    """What can be trained on of data.train, and the run's tokenizer.

    Where it has none yet one is trained, under a name that `keep_tokenizer` makes good: nothing is
    kept of a start that fails. Of several processes the first trains it.
    """
    if not config.data.train:
        raise ValueError("data.train is empty: it must name a folder or a manifest")
    utterances, unreadable = read_manifest(config.data.train)
    path = run / "tokenizer.model"
    if not path.exists():
        path = run / "tokenizer.tmp"
        on_first(
            lambda: Tokenizer.train(
                (utterance.text for utterance in utterances),
                kind=config.tokenizer.kind,
                vocabulary_size=config.tokenizer.vocabulary_size,
                path=path,
            )
        )
    tokenizer = Tokenizer.load(path)
    features = config.features
    frames_of = lambda seconds: halved(
        halved(frame_count(round(seconds * features.sample_rate_hz), features))
    )
    kept, labels, unfit = select_utterances(
        utterances,
        tokenizer,
        min_seconds=config.data.min_seconds,
        max_seconds=config.data.bucket_seconds[-1],
        max_labels=config.data.bucket_labels[-1],
        frames_of=frames_of,
        ctc=config.joint.ctc_weight > 0,
    )
    skipped = unreadable + unfit
    if not kept:
        raise ValueError(
            f"data.train = {config.data.train}: none of its {len(skipped)} utterances can be "
            f"trained on, the first is {skipped[0].id}: {skipped[0].reason}"
        )
    return Corpus(kept, labels, skipped), tokenizer


def keep_tokenizer(run: Path) -> None:
    """Gives a tokenizer that was just trained its name."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(run / "tokenizer.tmp", run / "tokenizer.model")
