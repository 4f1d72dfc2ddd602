"""The buckets of a run: from its recordings, from its checkpoint, or from its config."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from asr_jax.config import AugmentConfig, Config, DataConfig, MeshConfig, ObjectiveConfig
from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.selection import Limits
from asr_jax.distributed.mesh import make_mesh
from asr_jax.errors import UsageError
from asr_jax.experiment.corpus import limits_of
from asr_jax.experiment.tasks import task_of
from asr_jax.experiment.training_buckets import (
    assumed_buckets,
    buckets_for,
    check_buckets,
    describe_buckets,
    saved_buckets,
    training_lengths,
)
from asr_jax.types import Utterance

CONFIG = Config(data=DataConfig(batch_seconds=60.0))


def corpus_of(seconds, speaker: str = "s") -> Corpus:
    return Corpus(
        [Utterance(str(n), Path("x"), "", length, speaker) for n, length in enumerate(seconds)],
        [np.arange(1, 2 + int(4 * length), dtype=np.int32) for length in seconds],
    )


def chosen(config: Config, corpus: Corpus, *, parts: int = 1) -> Buckets:
    return buckets_for(config, training_lengths(config, corpus), 99, parts=parts)


def table(buckets: Buckets, config: Config, corpus: Corpus) -> list[str]:
    plan = task_of(config).plan(config, corpus, buckets)
    return describe_buckets(plan, is_language_model=config.objective.is_language_model)


def lengths(N: int = 400) -> np.ndarray:
    return np.clip(np.random.default_rng(0).gamma(4.0, 1.5, N), 0.3, 12.0)


def test_the_last_bucket_holds_the_slowest_speed_and_tempo_up_to_the_limit():
    corpus, longest = corpus_of(lengths()), lengths().max()
    augment = AugmentConfig(speeds=(0.8, 1.0), tempo_range=(0.5, 2.0), join_probability=0.5)
    slow = replace(CONFIG, augment=augment)
    assert chosen(slow, corpus).seconds[-1] == pytest.approx(longest / 0.4)
    short = replace(slow, data=replace(slow.data, max_seconds=15.0))
    assert chosen(short, corpus).seconds[-1] == 15.0
    fast = replace(CONFIG, augment=AugmentConfig(speeds=(1.1,), tempo_range=(1.2, 1.5)))
    # An utterance that fits no bucket keeps its speed.
    assert chosen(fast, corpus).seconds[-1] == longest


def test_the_seed_changes_no_shape():
    corpus = corpus_of(lengths(60))
    seeds = [replace(CONFIG, train=replace(CONFIG.train, seed=seed)) for seed in range(4)]
    assert len({chosen(config, corpus) for config in seeds}) == 1


def test_the_number_of_buckets_and_the_multiple_are_the_configs():
    corpus = corpus_of(lengths())
    three = replace(CONFIG, data=replace(CONFIG.data, buckets=3))
    assert len(chosen(three, corpus).seconds) == 3
    accumulate = replace(
        CONFIG,
        data=replace(CONFIG.data, batch_seconds=900.0),
        train=replace(CONFIG.train, accumulate=3),
    )
    found = chosen(accumulate, corpus, parts=3).utterances
    assert all(rows % 24 == 0 for rows in found)


def test_buckets_of_texts_are_by_labels():
    config = replace(CONFIG, objective=ObjectiveConfig(kind="language_model"))
    corpus = corpus_of(np.linspace(1.0, 20.0, 300))
    corpus = corpus._replace(utterances=[u._replace(duration_seconds=0.0) for u in corpus[0]])
    buckets = chosen(config, corpus)
    assert buckets.labels[-1] == 81 and len(buckets.labels) > 1
    padded = np.multiply(buckets.labels, buckets.utterances)
    assert padded.max() <= 600 + 8 * 81
    header, *rows = table(buckets, config, corpus)
    assert header.startswith(f"batches of {len(buckets.labels)} shapes, ")
    assert "81" in rows[-1] and " s " not in rows[-1]


def test_the_table_says_what_is_padding():
    corpus = corpus_of([1.0] * 8 + [3.0] * 8)
    config = replace(CONFIG, augment=AugmentConfig(speeds=(1.0,)))
    buckets = Buckets((1.0, 4.0), (5, 13), (8, 4))
    assert table(buckets, config, corpus) == [
        "batches of 2 shapes, 20.0% padding:",
        "up to    labels  utterances  batches  padding",
        "1.00 s        5           8        1       0%",
        "4.00 s       13           4        2      25%",
    ]
    # Seven utterances of the first bucket fill no batch of it. In the next, they take four times as
    # many seconds, more than twice a batch of their own.
    one_less = corpus._replace(utterances=corpus.utterances[1:], labels=corpus.labels[1:])
    assert table(buckets, config, one_less)[2] == ("1.00 s        5           8        1      12%")
    near = buckets._replace(seconds=(2.0, 4.0))
    assert table(near, config, one_less)[2:] == [
        "2.00 s        5           8        0       0%",
        "4.00 s       13           4        4      52%",
    ]


def test_devices_that_do_not_divide_the_batches_are_refused_with_the_numbers_that_do():
    mesh = make_mesh(MeshConfig(), jax.devices())
    rule = (
        r"^--run run: its batches have 16, 8 or 4 utterances, which divide over 1, 2 or 4 devices "
        r"with train.accumulate 1, not over mesh.data x mesh.fsdp = 8$"
    )
    with pytest.raises(UsageError, match=rule):
        check_buckets(Buckets((1.0, 2.0, 4.0), (9, 9, 9), (16, 8, 4)), CONFIG, mesh, Path("run"))
    check_buckets(Buckets((1.0, 2.0), (9, 9), (16, 8)), CONFIG, mesh, Path("run"))


def test_a_checkpoint_of_an_earlier_version_has_the_buckets_of_its_config():
    fields = {
        "data.bucket_seconds": [1.0, 2.5],
        "data.bucket_labels": [8, 9],
        "data.bucket_utterances": [4, 2],
    }
    kept = Buckets((1.0, 2.5), (8, 9), (4, 2))
    means = {"smoothed_loss": 0.0, "lowest_loss": 0.0, "utterances": ""}
    assert saved_buckets({"config": fields, **means}) == kept
    saved = saved_buckets({"config": fields, "buckets": [[3.0], [5], [8]], **means})
    assert saved == Buckets((3.0,), (5,), (8,))
    assert saved_buckets({"config": {}, **means}) is None


def test_limits_are_of_the_buckets_if_there_are_any():
    buckets = Buckets((1.0, 2.5), (8, 9), (4, 2))
    assert limits_of(CONFIG, buckets) == Limits(2.5, 9)
    assert limits_of(CONFIG, None) == Limits(30.0, np.inf, "data.max_seconds,")
    texts = replace(CONFIG, objective=ObjectiveConfig(kind="language_model"))
    assert limits_of(texts, buckets) == Limits(np.inf, 9)
    assert limits_of(texts, None) == Limits(np.inf, 300, "data.max_seconds / 0.1 s,")


def test_without_recordings_one_bucket_of_the_longest_is_assumed():
    data = DataConfig(batch_seconds=3000.0, max_seconds=20.0)
    assert assumed_buckets(Config(data=data), parts=1) == Buckets((20.0,), (120,), (144,))
