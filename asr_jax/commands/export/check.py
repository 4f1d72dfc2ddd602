"""Check of an exported model: its transcripts compared with those of its run."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asr_jax.data.manifest import read_transcribed
from asr_jax.data.recordings import read_recording
from asr_jax.errors import UsageError
from asr_jax.export.model_card import ExportCheck
from asr_jax.inference.recognizer import Recognizer, recognize_utterances
from asr_jax.scoring.scripts import is_without_spaces
from asr_jax.scoring.wer import character_error_rate, word_error_rate
from asr_jax.types import Utterance


class ReferenceTranscripts(NamedTuple):
    """Recordings of a dataset, and the run's transcripts of them."""

    data: str
    utterances: list[Utterance]
    texts: list[str]

    def compare(self, texts: Sequence[str]) -> ExportCheck:
        """Compare the exported model's transcripts with the run's."""
        references = [utterance.text for utterance in self.utterances]
        characters = {}
        if is_without_spaces(references):
            characters = {
                "cer_before": 100 * character_error_rate(references, self.texts),
                "cer_after": 100 * character_error_rate(references, texts),
            }
        return ExportCheck(
            data=self.data,
            recordings=len(texts),
            wer_before=100 * word_error_rate(references, self.texts),
            wer_after=100 * word_error_rate(references, texts),
            equal=sum(a == b for a, b in zip(self.texts, texts, strict=True)),
            **characters,
        )

    def recordings(self, *, sample_rate_hz: int) -> list[np.ndarray]:
        """Read the samples of every recording."""
        return [read_recording(u, sample_rate_hz=sample_rate_hz) for u in self.utterances]


def recognize_reference(recognizer: Recognizer, data: str, limit: int) -> ReferenceTranscripts:
    """Recognize at most `limit` recordings, evenly spread; unreadable recordings are skipped."""
    config = recognizer.config.data
    sources = {"--data": data, "data.test": config.test, "data.dev": config.dev}
    given = [(name, value) for name, value in sources.items() if value]
    if not given:
        raise UsageError(
            "--data: must name a dataset, because the run has neither data.test nor data.dev"
        )
    name, data = given[0]
    utterances, _ = read_transcribed(data, name)
    number = min(limit, len(utterances))
    chosen = [utterances[k * len(utterances) // number] for k in range(number)]
    texts = recognize_utterances(recognizer, chosen).texts
    normalize = recognizer.tokenizer.normalize
    recognized = [
        (utterance._replace(text=normalize(utterance.text)), text)
        for utterance, text in zip(chosen, texts)
        if text is not None
    ]
    if not recognized:
        raise UsageError(f"{name} = {data}: none of its recordings can be read")
    return ReferenceTranscripts(data, *map(list, zip(*recognized)))


def require_equal(check: ExportCheck, where: str, *, fraction: float = 1.0) -> None:
    """Raise ValueError unless at least `fraction` of the transcripts equal the run's."""
    if check.equal < fraction * check.recordings:
        raise ValueError(
            f"{where}: {check.recordings - check.equal} of {check.recordings} transcripts differ "
            "from the run's"
        )
