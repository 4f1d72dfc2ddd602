"""The corpus of a run with several datasets, and errors in its settings."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_manifest, write_tone

from asr_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    EncoderConfig,
    TokenizerConfig,
    TrainConfig,
)
from asr_jax.config_file import write_config
from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.experiment.corpus import keep_tokenizer, training_corpus, with_chosen_tokenizer
from asr_jax.experiment.run_directory import changes, claim_run, run_metadata
from asr_jax.text import Tokenizer
from asr_jax.training.checkpoint import Metadata
from asr_jax.types import Utterance


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two datasets with equal ids, one that is too long, and a folder of noise."""
    folder = tmp_path_factory.mktemp("corpora")
    for name, seconds in (("a", 0.5), ("b", 0.6), ("long", 3.0)):
        texts = {"1.wav": "one", "2.wav": "two", "3.wav": ""}
        for recording in texts:
            write_tone(folder / name / recording, seconds)
        write_manifest(folder / name / "data.jsonl", texts)
    write_tone(folder / "noise" / "hum.wav", 1.0)
    (folder / "noise" / "broken.wav").write_bytes(b"no recording")
    return folder


def config_of(folder, *corpora: str, noise: str = "", **data) -> Config:
    train, *more = [str(folder / name / "data.jsonl") for name in corpora]
    return Config(
        data=DataConfig(
            train=train,
            more_train=tuple(more),
            bucket_seconds=(1.0,),
            bucket_labels=(8,),
            bucket_utterances=(2,),
            **data,
        ),
        augment=AugmentConfig(noise=noise),
        tokenizer=TokenizerConfig(kind="char"),
    )


def test_datasets_are_concatenated_with_distinct_ids(folder, tmp_path):
    config = config_of(folder, "a", "b", noise=str(folder / "noise"), train_weights=(1.0, 0.5))
    corpus, tokenizer = training_corpus(config, tmp_path)
    assert [u.id for u in corpus.utterances] == ["1.wav", "2.wav", "1:1.wav", "1:2.wav"]
    assert corpus.sizes == [2, 2]
    assert [one.id for one in corpus.skipped] == ["3.wav", "1:3.wav", "augment.noise:broken.wav"]
    assert [one.id for one in corpus.noise] == [
        "augment.noise:hum.wav"
    ] and not corpus.impulse_responses
    assert [tokenizer.decode(ids) for ids in corpus.labels] == ["one", "two"] * 2
    assert (tmp_path / "labels.npz").exists()

    same, _ = training_corpus(config, tmp_path)
    assert same.fingerprint(joins=True) == corpus.fingerprint(joins=True)
    others = [
        replace(config, data=replace(config.data, train_weights=(1.0, 0.25))),
        replace(config, augment=AugmentConfig()),
        config_of(folder, "b", "a", noise=str(folder / "noise"), train_weights=(1.0, 0.5)),
    ]
    prints = {training_corpus(other, tmp_path)[0].fingerprint(joins=True) for other in others}
    assert len(prints | {corpus.fingerprint(joins=True)}) == 4


def test_data_that_moved_has_the_same_fingerprint(folder, tmp_path):
    """Absolute paths are ids in a manifest without ids; noise moves with its folder."""

    def corpus_in(place: Path, names: Callable[[Path], str], noise: str) -> Corpus:
        shutil.copytree(folder, place, dirs_exist_ok=True)
        for name in ("a", "b"):
            recordings = sorted((place / name).glob("*.wav"))
            texts = {names(path): text for path, text in zip(recordings, ("one", "two", ""))}
            write_manifest(place / name / "data.jsonl", texts)
        config = config_of(place, "a", "b", noise=noise, train_weights=(1.0, 0.5))
        return training_corpus(config, tmp_path)[0]

    first, second, link = tmp_path / "first", tmp_path / "deep/er/second", tmp_path / "link"
    before = corpus_in(first, str, str(first / "noise"))
    link.symlink_to(second)
    moved = [
        corpus_in(second, str, f"{second}/noise/"),
        corpus_in(second, lambda path: str(link / path.relative_to(second)), str(link / "noise")),
        corpus_in(second, lambda path: path.name, str(second / "noise")),
    ]
    for after in moved:
        assert [u.id for u in after.utterances] != [u.id for u in before.utterances]
        for joins in (False, True):
            assert after.fingerprint(joins=joins) == before.fingerprint(joins=joins)


def corpus(*speakers: str, seconds: float = 1.5, third_label: int = 4, noise: str = "n") -> Corpus:
    first, second = speakers
    return Corpus(
        utterances=[
            Utterance("a", Path("x"), "one", seconds, first),
            Utterance("b\udcff", Path("x"), "two", 2.5, second),
        ],
        labels=[np.array([2, 3], np.int32), np.array([third_label], np.int32)],
        sizes=[2],
        noise=[Utterance(noise, Path("n"), "", 3.0)],
        weights=(1.0,),
    )


def test_fingerprint_covers_what_the_batches_depend_on():
    alike = [corpus("s", "t"), corpus("t", "s")]
    others = [
        corpus("s", "t", seconds=1.25),
        corpus("s", "t", third_label=5),
        corpus("s", "t", noise="m"),
        corpus("s", "s"),
        corpus("", "s"),
    ]
    assert len({one.fingerprint(joins=True) for one in alike}) == 1
    assert len({one.fingerprint(joins=True) for one in [*alike, *others]}) == 6
    # Without joined utterances, speakers change no batch.
    assert len({one.fingerprint(joins=False) for one in [*alike, *others]}) == 4


def test_run_of_an_earlier_version_resumes_without_a_warning(tmp_path):
    config, now = Config(), corpus("s", "")
    # Computed by an earlier version, whose fingerprints depend on ids.
    saved = "8c8b666974540e6469493bc8347d4a07adb167ecdfa2424909d1681f6ac5125e"
    buckets = Buckets((4.0,), (8,), (2,))
    metadata = run_metadata(config, now, buckets)
    before = Metadata(config=metadata["config"], utterances=saved)
    assert changes(before, metadata, now, tmp_path) == []
    other = now._replace(utterances=[u._replace(id=u.id + "x") for u in now.utterances])
    [warning] = changes(before, run_metadata(config, other, buckets), other, tmp_path)
    assert warning.startswith("the utterances of data.train are not those")


def test_the_tokenizer_is_not_the_runs_before_a_checkpoint(folder, tmp_path):
    """The data grow after a start that ended before its first checkpoint."""
    run, data = tmp_path / "run", tmp_path / "data.jsonl"
    run.mkdir()
    texts = {str(folder / "a" / f"{n}.wav"): text for n, text in enumerate(["one", "two"], start=1)}
    write_manifest(data, texts)
    config = config_of(folder, "a")
    config = replace(config, data=replace(config.data, train=str(data)))

    def start(config: Config) -> tuple[list[str], bytes]:
        corpus, _ = training_corpus(config, run)
        keep_tokenizer(run)
        return [u.text for u in corpus.utterances], (run / "tokenizer.model").read_bytes()

    assert start(config)[0] == ["one", "two"]
    write_manifest(data, {**texts, str(folder / "b" / "1.wav"): "six"})
    grown, contents = start(config)
    assert sorted(grown) == ["one", "six", "two"]
    # A tokenizer that is given takes the place of one that was trained.
    Tokenizer.train(["two"], kind="char", vocabulary_size=0, path=tmp_path / "given.model")
    given = replace(config, tokenizer=TokenizerConfig(model=str(tmp_path / "given.model")))
    assert start(given) == (["two"], (tmp_path / "given.model").read_bytes())
    assert start(config)[1] == contents
    # From the first checkpoint on, the tokenizer stays.
    (run / "checkpoints" / "3").mkdir(parents=True)
    write_manifest(data, {**texts, str(folder / "b" / "1.wav"): "zero"})
    assert start(config) == (["one", "two"], contents)
    # A folder with an exported model, or whose checkpoints were deleted, keeps its tokenizer too.
    (run / "checkpoints" / "3").rmdir()
    (run / "model.safetensors").touch()
    assert start(config) == (["one", "two"], contents)


def test_the_normalization_of_a_given_tokenizer_is_kept_in_the_config(tmp_path):
    path, run = tmp_path / "given.model", tmp_path / "run"
    given = Tokenizer.train(
        ["One"], kind="char", vocabulary_size=0, path=path, normalization="lowercase"
    )
    asked = replace(Config(), tokenizer=TokenizerConfig(model=str(path)))
    resolved = with_chosen_tokenizer(asked, given)
    assert resolved.tokenizer.normalization == "lowercase"
    assert with_chosen_tokenizer(resolved, given) == resolved
    # The command that started the run also resumes it.
    (run / "checkpoints" / "3").mkdir(parents=True)
    write_config(resolved, run / "config.json")
    claim_run(run, asked)
    other = replace(asked, tokenizer=replace(asked.tokenizer, normalization="nfkc"))
    with pytest.raises(ValueError) as error:
        with_chosen_tokenizer(other, given)
    assert str(error.value) == (
        "tokenizer.normalization = 'nfkc': must be none, or 'lowercase', which is that of "
        f"tokenizer.model = {path}"
    )
    with pytest.raises(ValueError, match=r"^tokenizer.normalization = 'other': needs tokenizer."):
        TokenizerConfig(normalization="other")


def test_dataset_without_usable_utterances_is_named(folder, tmp_path):
    with pytest.raises(ValueError) as error:
        training_corpus(config_of(folder, "a", "long"), tmp_path)
    assert str(error.value) == (
        f"data.more_train = {folder / 'long' / 'data.jsonl'}: none of its 3 utterances can be "
        "trained on, the first is 1:1.wav: longer than the last bucket's 1 s: 3 s"
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: DataConfig(train="a", more_train=("b",), train_weights=(1.0,)),
            "data.train_weights = (1.0,): needs a positive value for data.train and each of "
            "data.more_train, 2 in all",
        ),
        (lambda: DataConfig(train_weights=(0.0,)), "data.train_weights = (0.0,): needs a positive"),
        (
            lambda: DataConfig(train="a", more_train=("a",)),
            "data.more_train = ('a',): needs corpora that differ",
        ),
        (
            lambda: AugmentConfig(noise_snr_db=(20.0, 5.0)),
            "augment.noise_snr_db = (20.0, 5.0): needs -100 <= lowest <= highest <= 100",
        ),
        (
            lambda: AugmentConfig(gain_db=(0.0, float("nan"))),
            "augment.gain_db = (0.0, nan): needs -100 <= lowest",
        ),
        (
            lambda: AugmentConfig(speeds=(1.0, math.inf)),
            "augment.speeds = (1.0, inf): needs at least one factor, all in 0.1..10",
        ),
        (
            lambda: DataConfig(bucket_seconds=(4.0, 8.0, math.inf)),
            "data.bucket_seconds = (4.0, 8.0, inf): must be positive and increasing, and finite",
        ),
        (
            lambda: DataConfig(min_seconds=math.nan),
            "data.min_seconds = nan: must be finite, >= 0",
        ),
        (
            lambda: EncoderConfig(kernel_frames=-1),
            "encoder.kernel_frames = -1: must be positive and odd",
        ),
        (lambda: TrainConfig(seed=2**63), f"train.seed = {2**63}: must be below 2^63"),
        (
            lambda: AugmentConfig(impulse_response_probability=1.5),
            "augment.impulse_response_probability = 1.5: must lie in 0..1",
        ),
    ],
)
def test_invalid_settings_are_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
