"""A part of the training data, held out to choose the best checkpoint by."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from asr_jax.types import Utterance

MOST_SECONDS = 3600.0
# Where speakers are fewer, one of them is too large a part of the data.
FEWEST_SPEAKERS = 10


def held_out(utterances: Sequence[Utterance], *, fraction: float) -> list[int]:
    """Return the indices of the utterances to hold out, increasing.

    Whole speakers are held out if all utterances have one and there are at least FEWEST_SPEAKERS;
    otherwise, single utterances. They are taken in the order of a hash of their names, until they
    last `fraction` of all seconds or MOST_SECONDS: at least one, and never all. The same names are
    thus held out on every host and at every start, wherever the data are.
    """
    speakers = {utterance.speaker for utterance in utterances}
    by_speaker = "" not in speakers and len(speakers) >= FEWEST_SPEAKERS
    groups: dict[str, list[int]] = defaultdict(list)
    for index, utterance in enumerate(utterances):
        groups[utterance.speaker if by_speaker else utterance.id].append(index)
    seconds = [utterance.duration_seconds for utterance in utterances]
    if not any(seconds):  # texts, each of which counts as a second
        seconds = [1.0] * len(utterances)
    wanted = min(fraction * sum(seconds), MOST_SECONDS)
    chosen: list[int] = []
    held_seconds = 0.0
    for name in sorted(groups, key=_hash)[:-1]:
        if chosen and held_seconds >= wanted:
            break
        chosen += groups[name]
        held_seconds += sum(seconds[index] for index in groups[name])
    return sorted(chosen)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogatepass")).digest()
