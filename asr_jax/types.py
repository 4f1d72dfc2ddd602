"""What flows from room to room on the host, and the letters of array axes.

B batch, S samples, T frames (of the tensor at hand), F mel bins, U labels, D width, H heads,
K kernel, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class Member(NamedTuple):
    """A recording that is a stretch of a larger file's bytes, such as a member of a tar archive."""

    offset_bytes: int
    size_bytes: int


class Record(NamedTuple):
    """A recording that is a record of an ArrayRecord shard."""

    number: int


class InMemory(NamedTuple):
    """A recording that is in no file: its bytes, as a file would have them."""

    contents: bytes


# A frozen dataclass takes more than twice as long to make, of 281,241 (docs/benchmarks.md).
class Utterance(NamedTuple):
    """One transcribed stretch of a recording, as a manifest names it."""

    id: str
    audio: Path
    text: str
    duration_seconds: float
    speaker: str = ""
    offset_seconds: float = 0.0
    within: Member | Record | InMemory | None = None
    """Where in the file `audio` the recording lies; None: it is the file."""
    channel: int | None = None
    """Channel of the recording, from 0; None: the mean of all."""

    @property
    def place(self) -> str:
        """Where the recording lies, for messages."""
        match self.within:
            case Member(offset_bytes):
                return f"{self.audio} from byte {offset_bytes} on"
            case Record(number):
                return f"{self.audio}, record {number}"
            case None | InMemory():
                return str(self.audio)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An utterance that was left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Word:
    """A word that was recognised."""

    text: str
    start_seconds: float
    """From the utterance's start on: where the frame of the word's first label begins."""
    end_seconds: float
    """Where the frame of its last label ends."""
    confidence: float
    """Probability of its labels, given the audio and what was recognised before, in 0..1."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was recognised in an utterance."""

    text: str
    words: tuple[Word, ...]
    """Those that white space separates in the text."""
    score: float
    """What the search ranks by, in nats."""


class LabelPosterior(NamedTuple):
    """When a label of an utterance comes, given the audio and all the labels."""

    piece: str
    start_seconds: float
    """Of the first frame below."""
    frame_seconds: float
    probabilities: tuple[float, ...]
    """That it comes at this frame, of consecutive ones."""


class Batch(NamedTuple):
    """Utterances padded to one of the bucket's static shapes, as NumPy arrays.

    Rows beyond the last utterance have `utterances` -1, no samples and no labels. Padding is zero.
    """

    samples: Float32[np.ndarray, "B S"]
    """Audio in -1..1 at the config's sample rate."""
    sample_lengths: Int32[np.ndarray, " B"]
    labels: Int32[np.ndarray, "B U"]
    label_lengths: Int32[np.ndarray, " B"]
    tempo: Float32[np.ndarray, " B"]
    """Factor by which the features are to be shortened in time; 1 leaves them alone."""
    utterances: Int32[np.ndarray, " B"]
    """Index of the (first) utterance in the manifest, -1 for a padding row."""
    second_utterance: Int32[np.ndarray, " B"]
    """Index of the utterance joined to its end, -1 for none."""
