"""The corpus that a run trains on."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from asr_jax.types import Skipped, Utterance


class Corpus(NamedTuple):
    """The utterances of one dataset or several in sequence, and recordings to augment them."""

    utterances: Sequence[Utterance]
    labels: Sequence[Int32[np.ndarray, " _"]]
    """The labels of each utterance."""
    skipped: Sequence[Skipped] = ()
    """Utterances and augmentation recordings that are left out."""
    sizes: Sequence[int] = ()
    """Number of utterances from each dataset; empty: all are from one."""
    noise: Sequence[Utterance] = ()
    """Recordings of noise, without transcripts."""
    impulse_responses: Sequence[Utterance] = ()
    """Recordings of room impulse responses."""
    weights: tuple[float, ...] = ()
    """Passes through each dataset per epoch; empty: one."""
    held_out: Sequence[Utterance] = ()
    """Utterances of the datasets that are not trained on, but stand for data.dev."""
    separator: Sequence[int] = ()
    """Labels between two joined transcripts (`Tokenizer.separator`)."""

    def durations_seconds(self) -> np.ndarray:
        """Return the duration of each utterance."""
        return np.array([utterance.duration_seconds for utterance in self.utterances], np.float64)

    def label_lengths(self) -> np.ndarray:
        """Return the number of labels of each utterance."""
        return np.array([len(ids) for ids in self.labels], np.int64)

    def speaker_numbers(self) -> Int64[np.ndarray, " N"]:
        """Return the number of each utterance's speaker, from 0 on; -1 if it is unknown."""
        numbers: dict[str, int] = {"": -1}
        for utterance in self.utterances:
            numbers.setdefault(utterance.speaker, len(numbers) - 1)
        return np.array([numbers[utterance.speaker] for utterance in self.utterances], np.int64)

    def fingerprint(self, *, joins: bool) -> str:
        """Return a digest of what determines the batches.

        The ids of utterances do not: they may contain folders, from which data may move. The ids of
        noise and impulse responses are relative to their folder. Speakers do if the plan `joins`
        utterances.
        """
        augmentation = [*self.noise, *self.impulse_responses]
        facts = (
            [len(self.noise), len(self.impulse_responses), *self.sizes, *self.weights],
            [recording.id for recording in augmentation],
        )
        digest = hashlib.sha256(ascii(facts).encode())
        digest.update(self.durations_seconds().data)
        digest.update(np.array([recording.duration_seconds for recording in augmentation]).data)
        digest.update(self.label_lengths().data)
        digest.update(np.concatenate(self.labels).data)
        if joins:
            digest.update(self.speaker_numbers().data)
        return digest.hexdigest()

    def fingerprint_with_ids(self) -> str:
        """Return the fingerprint that runs of earlier versions have saved."""
        recordings = [*self.utterances, *self.noise, *self.impulse_responses]
        numbers = [len(self.noise), len(self.impulse_responses), *self.sizes, *self.weights]
        digest = hashlib.sha256(repr(numbers).encode())
        # The id of a file whose name is not UTF-8 contains surrogates.
        ids = "\n".join(recording.id for recording in recordings)
        digest.update(ids.encode(errors="surrogatepass"))
        digest.update(np.array([recording.duration_seconds for recording in recordings]).data)
        digest.update(self.label_lengths().data)
        digest.update(np.concatenate(self.labels).data)
        return digest.hexdigest()
