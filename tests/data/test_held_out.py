"""Every host holds out the same recordings: whole speakers, and never all of them."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from asr_jax.data.held_out import FEWEST_SPEAKERS, held_out
from asr_jax.types import Utterance


def utterance(name: str, speaker: str = "", seconds: float = 4.0) -> Utterance:
    return Utterance(name, Path("x"), "text", seconds, speaker)


@settings(max_examples=60, deadline=None)
@given(
    speakers=st.lists(st.sampled_from([*map(str, range(30))]), max_size=80),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 99),
)
def test_whole_speakers_are_held_out_whatever_the_order(speakers, fraction, seed):
    utterances = [utterance(f"{n}", speaker) for n, speaker in enumerate(speakers)]
    indices = held_out(utterances, fraction=fraction)
    assert indices == sorted(set(indices))
    assert bool(indices) == (len(utterances) > 1) and len(indices) < max(1, len(utterances))
    order = np.random.default_rng(seed).permutation(len(utterances)).tolist()
    moved = [utterances[n]._replace(audio=Path("elsewhere")) for n in order]
    chosen = {utterances[n].id for n in indices}
    assert {moved[n].id for n in held_out(moved, fraction=fraction)} == chosen
    if len(set(speakers)) >= FEWEST_SPEAKERS:
        voices = {utterances[n].speaker for n in indices}
        assert chosen == {u.id for u in utterances if u.speaker in voices}


def test_the_fraction_is_of_the_seconds_and_at_most_an_hour():
    utterances = [utterance(f"{n}", seconds=3.0 + n % 5) for n in range(2000)]

    def held_seconds(fraction: float, times: float = 1.0) -> float:
        scaled = [u._replace(duration_seconds=times * u.duration_seconds) for u in utterances]
        return sum(scaled[n].duration_seconds for n in held_out(scaled, fraction=fraction))

    assert 500 <= held_seconds(0.05) < 507
    assert 3600 <= held_seconds(0.05, times=100.0) < 3600 + 700


def test_recordings_are_held_out_where_speakers_are_few_or_unknown():
    few = [utterance(f"{n}", speaker=str(n % 3)) for n in range(100)]
    unknown = [utterance(f"{n}", speaker=str(n % 20) if n else "") for n in range(100)]
    for utterances in (few, unknown):
        assert len(held_out(utterances, fraction=0.1)) == 10
    texts = [utterance(f"{n}", seconds=0.0) for n in range(100)]
    assert len(held_out(texts, fraction=0.1)) == 10


def test_what_is_held_out_stays_so_when_the_data_grow():
    utterances = [utterance(f"{n}", speaker=str(n % 40)) for n in range(1200)]
    before = {utterances[n].speaker for n in held_out(utterances[:1000], fraction=0.1)}
    after = {utterances[n].speaker for n in held_out(utterances, fraction=0.1)}
    assert before <= after or after <= before
