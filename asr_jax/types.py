"""Types that modules exchange on the host, and the letters of array axes.

B batch, S samples, T frames (of the tensor at hand), F mel bins, U labels, D width, H heads,
K kernel, V vocabulary.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class Member(NamedTuple):
    """A recording that is a range of a larger file's bytes, such as a member of a tar archive."""

    offset_bytes: int
    size_bytes: int


class Record(NamedTuple):
    """A recording that is a record of an ArrayRecord shard."""

    number: int
    gain: float = 1.0
    """The factor that restores the recording's samples from those that are stored."""


class TableRow(NamedTuple):
    """A recording in the column `audio` of a Parquet file that stores it compressed."""

    row_group: int
    row: int
    """Row of the row group, from 0."""


class InMemory(NamedTuple):
    """A recording in memory: the bytes of an audio file."""

    contents: bytes


# Creating 281,241 frozen dataclasses takes more than twice as long (docs/benchmarks.md).
class Utterance(NamedTuple):
    """A transcribed segment of a recording, as a manifest lists it."""

    id: str
    audio: Path
    text: str
    duration_seconds: float
    speaker: str = ""
    offset_seconds: float = 0.0
    within: Member | Record | TableRow | InMemory | None = None
    """The place of the recording in the file `audio`; None if it is the whole file."""
    channel: int | None = None
    """Channel of the recording, from 0; None for the mean of all."""
    confidence: float = math.nan
    """Confidence, 0 to 1, of the model that wrote the text; NaN if a person wrote it."""

    @property
    def place(self) -> str:
        """The location of the recording, for messages."""
        match self.within:
            case Member(offset_bytes):
                return f"{self.audio} from byte {offset_bytes} on"
            case Record(number, _):
                return f"{self.audio}, record {number}"
            case TableRow(row_group, row):
                return f"{self.audio}, row {row} of row group {row_group}"
            case None | InMemory():
                return str(self.audio)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An utterance that was left out, and the reason."""

    id: str
    reason: str
    recording: Utterance | None = field(default=None, compare=False, repr=False)
    """The recording to play, if it lacks only a transcript."""

    def listed(self) -> dict[str, str]:
        """Return the fields that lists of skipped utterances have."""
        return {"id": self.id, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Word:
    """A recognized word."""

    text: str
    start_seconds: float
    """Start of the frame of the word's first label, from the utterance's start."""
    end_seconds: float
    """End of the frame of the word's last label."""
    confidence: float
    """Probability of the word's labels, given the audio and the labels before them, in 0..1."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """The recognized text of an utterance."""

    text: str
    words: tuple[Word, ...]
    """The words of the text, which white space separates."""
    score: float
    """The score that the search ranks hypotheses by, in nats."""


class LabelPosterior(NamedTuple):
    """Posterior of the time of one label of an utterance, given the audio and all labels."""

    piece: str
    start_seconds: float
    """Start of the first frame in `probabilities`."""
    frame_seconds: float
    """Duration of a frame."""
    probabilities: tuple[float, ...]
    """Probability that the label is emitted at each of several consecutive frames."""


class Batch(NamedTuple):
    """Utterances padded to one of the bucket's static shapes, as NumPy arrays.

    Padding rows have `utterances` -1, no samples and no labels. Padding is zero.
    """

    samples: Float32[np.ndarray, "B S"]
    """Audio in -1..1 at the config's sample rate."""
    sample_lengths: Int32[np.ndarray, " B"]
    labels: Int32[np.ndarray, "B U"]
    label_lengths: Int32[np.ndarray, " B"]
    tempo: Float32[np.ndarray, " B"]
    """Factor by which the features are to be shortened in time; 1 does not change them."""
    utterances: Int32[np.ndarray, " B"]
    """Index of the (first) utterance in the manifest, -1 for a padding row."""
    second_utterance: Int32[np.ndarray, " B"]
    """Index of the utterance joined to its end, -1 for none."""
