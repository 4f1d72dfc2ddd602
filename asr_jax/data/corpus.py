"""The corpus that a run trains on."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

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
    separator: Sequence[int] = ()
    """Labels between two joined transcripts (`Tokenizer.separator`)."""

    def durations_seconds(self) -> np.ndarray:
        """Return the duration of each utterance."""
        return np.array([utterance.duration_seconds for utterance in self.utterances], np.float64)

    def label_lengths(self) -> np.ndarray:
        """Return the number of labels of each utterance."""
        return np.array([len(ids) for ids in self.labels], np.int64)

    def fingerprint(self) -> str:
        """Return a digest of everything that the plan of batches depends on."""
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
