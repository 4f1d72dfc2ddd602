"""Throughput of the input pipeline, in seconds of audio per second.

    python benchmarks/data_pipeline.py CONFIG [--FIELD VALUE ...]
    taskset -c 0 python benchmarks/data_pipeline.py configs/quickstart.py     (one core)
    python benchmarks/data_pipeline.py configs/quickstart.py --flac           (the corpus as FLAC)
    python benchmarks/data_pipeline.py --planning                             (281,241 transcripts)

Each stage is measured in one thread, including the stages before it; then `training_batches` with
data.read_threads and without a cache. Noise and impulse responses are synthetic. Seconds are those
of the recordings before speed changes. Prints a table, and a line of JSON at the end.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import grain
import numpy as np
import sentencepiece
import soundfile
import soxr

from asr_jax.audio.samples import change_speed, read_audio
from asr_jax.commands.arguments import override
from asr_jax.config import AugmentConfig, Config, DataConfig, ObjectiveConfig, TokenizerConfig
from asr_jax.config_file import load_config
from asr_jax.data.augment import add_noise, add_reverberation, read_segment, read_untranscribed
from asr_jax.data.buckets import Buckets
from asr_jax.data.corpus import Corpus
from asr_jax.data.epochs import Epochs
from asr_jax.data.labels import encode_transcripts
from asr_jax.data.manifest import read_manifest
from asr_jax.data.pipeline import training_batches, training_plan
from asr_jax.data.plan import TrainingPlan
from asr_jax.data.recordings import read_recording
from asr_jax.data.sources.prepared import FORMAT
from asr_jax.experiment.corpus import training_corpus, usable_utterances
from asr_jax.experiment.training_buckets import buckets_for, describe_buckets, training_lengths
from asr_jax.text import Tokenizer
from asr_jax.types import Utterance

RATE_HZ = 16_000
REPEATS = 3
UTTERANCES, CHARACTERS, VOCABULARY = 281_241, 180, 1024


def best_seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Return the least wall and CPU seconds of a few runs; other load can only add to them."""
    taken = []
    for _ in range(REPEATS):
        began, began_work = time.perf_counter(), time.process_time()
        work()
        taken.append((time.perf_counter() - began, time.process_time() - began_work))
    walls, processor = zip(*taken)
    return min(walls), min(processor)


def as_flac(utterances: Sequence[Utterance], folder: Path) -> list[Utterance]:
    stored = []
    for n, utterance in enumerate(utterances):
        samples = read_recording(utterance, sample_rate_hz=RATE_HZ)
        path = folder / f"{n}.flac"
        soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")
        stored.append(utterance._replace(audio=path, offset_seconds=0.0))
    return stored


def effects(folder: Path) -> tuple[list[Utterance], list[Utterance]]:
    """Write a minute of noise and an impulse response of half a second, and list both."""
    random = np.random.default_rng(0)
    for name, seconds in (("noise", 60.0), ("impulse_responses", 0.5)):
        time_seconds = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
        decay = np.exp(-6.9 * time_seconds / 0.4) if name == "impulse_responses" else 0.1
        samples = decay * random.normal(size=len(time_seconds))
        (folder / name).mkdir()
        soundfile.write(folder / name / "0.flac", samples / np.abs(samples).max(), RATE_HZ)
    noise, _ = read_untranscribed(str(folder / "noise"), "augment.noise")
    impulse_responses, _ = read_untranscribed(
        str(folder / "impulse_responses"), "augment.impulse_responses"
    )
    return noise, impulse_responses


def reading(
    config: Config, corpus: Corpus, noise: list[Utterance], impulse_responses: list[Utterance]
) -> dict:
    """Return seconds of audio per second, by stage."""
    utterances, seconds = corpus.utterances, sum(u.duration_seconds for u in corpus.utterances)
    speeds = np.random.default_rng(1).choice(config.augment.speeds, len(utterances))
    response = read_audio(impulse_responses[0].audio, sample_rate_hz=RATE_HZ)
    read = lambda utterance: read_recording(utterance, sample_rate_hz=RATE_HZ)

    def prepare(*, faster: bool, effects: bool) -> None:
        for utterance, speed in zip(utterances, speeds):
            samples = read(utterance)
            if faster:
                samples = change_speed(samples, speed)
            if effects:
                samples = add_reverberation(samples, response)
                segment = read_segment(
                    noise[0],
                    read,
                    start_seconds=speed,
                    samples=len(samples),
                    sample_rate_hz=RATE_HZ,
                )
                add_noise(samples, segment, snr_db=10.0)

    def batches(corpus: Corpus, augment: AugmentConfig) -> None:
        data = replace(config.data, cache_gib=0.0)
        buckets = Buckets.of(config.data) or chosen_buckets(config, corpus)
        plan = training_plan(corpus, buckets=buckets, augment=augment, seed=0)
        stream = training_batches(corpus, Epochs(plan), data=data, sample_rate_hz=RATE_HZ)
        for _ in range(plan.number_of_batches(0)):
            next(stream)

    bare = corpus._replace(sizes=(), weights=(), noise=(), impulse_responses=())
    plain = replace(config.augment, join_probability=0.0)
    certain = replace(plain, noise_probability=1.0, impulse_response_probability=1.0)
    parts = {
        "decode": lambda: prepare(faster=False, effects=False),
        "+ speed": lambda: prepare(faster=True, effects=False),
        "+ reverberation, noise": lambda: prepare(faster=True, effects=True),
        "training_batches": lambda: batches(bare, plain),
        "training_batches, reverberation, noise": lambda: batches(
            bare._replace(noise=noise, impulse_responses=impulse_responses), certain
        ),
    }
    figures = {}
    for name, work in parts.items():
        wall, processor = best_seconds(work)
        figures[name] = {"per_second": seconds / wall, "per_core_second": seconds / processor}
        print(
            f"{name:40s} {seconds / wall:8.0f} audio s/s {seconds / processor:8.0f} audio s per "
            "core-second"
        )
    return {"hours": seconds / 3600, "audio_seconds_per_second": figures}


def chosen_buckets(config: Config, corpus: Corpus) -> Buckets:
    return buckets_for(config, training_lengths(config, corpus), VOCABULARY, parts=1)


def synthetic_index(folder: Path) -> None:
    """Write index.json of a prepared dataset of LibriSpeech's size, without its shards."""
    random = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = random.integers(2, 9, 20_000)
    words = ["".join(random.choice(letters, length)) for length in lengths]
    usual = 1 / np.arange(1, len(words) + 1)
    drawn = random.choice(len(words), (UTTERANCES, CHARACTERS // 6), p=usual / usual.sum())
    index = {
        "format": FORMAT,
        "shards": [["shard", 0, UTTERANCES]],
        "id": [f"{n:06d}" for n in range(UTTERANCES)],
        "text": [" ".join(words[k] for k in row) for row in drawn.tolist()],
        "speaker": [str(n % 2338) for n in range(UTTERANCES)],
        "duration_seconds": np.clip(random.gamma(8.0, 1.55, UTTERANCES), 1.3, 19.9).tolist(),
    }
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "shard").touch()


def planning(folder: Path) -> dict:
    """Return the seconds from an index on disk to the first batch, at a first and second start."""
    synthetic_index(folder)
    speech = np.random.default_rng(1).normal(size=12 * RATE_HZ) / 10
    soundfile.write(folder / "12s.flac", speech, RATE_HZ)
    config = Config(
        data=DataConfig(max_seconds=20.0, batch_seconds=3000.0),
        tokenizer=TokenizerConfig(vocabulary_size=VOCABULARY),
        objective=ObjectiveConfig(ctc_weight=0.3),
    )
    utterances, _ = read_manifest(folder)
    transcripts = [utterance.text for utterance in utterances]
    tokenizer = Tokenizer.train(
        transcripts[:10_000], kind="unigram", vocabulary_size=VOCABULARY, path=folder / "model"
    )

    def plan_of(corpus: Corpus, augment: AugmentConfig = config.augment) -> TrainingPlan:
        buckets = chosen_buckets(replace(config, augment=augment), corpus)
        return training_plan(corpus, buckets=buckets, augment=augment, seed=0)

    def start() -> tuple[dict[str, float], Corpus]:
        parts: dict[str, float] = {}
        began, began_work = time.perf_counter(), time.process_time()

        def done(part: str) -> None:
            parts[part] = time.perf_counter() - began - sum(parts.values())

        utterances, _ = read_manifest(folder)
        done("index")
        transcripts = [utterance.text for utterance in utterances]
        labels = encode_transcripts(transcripts, tokenizer, cache_path=folder / "labels.npz")
        done("labels")
        kept, labels, skipped = usable_utterances(config, utterances, tokenizer, labels=labels)
        done("selection")
        corpus = Corpus(kept, labels, skipped, [len(kept)])
        corpus.fingerprint(joins=False)
        done("fingerprint")
        plan_of(corpus).batches(0)
        done("plan")
        parts["all"] = sum(parts.values())
        parts["all, processor"] = time.process_time() - began_work
        return parts, corpus

    figures: dict[str, dict[str, float]] = {}
    for name in ("first start", "second start"):
        for _ in range(REPEATS):
            if name == "first start":
                (folder / "labels.npz").unlink(missing_ok=True)
            parts, corpus = start()
            figures[name] = min(parts, figures.get(name, parts), key=lambda parts: parts["all"])
        text = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in figures[name].items())
        print(f"{name:14s} {text}")

    print("\n".join(describe_buckets(plan_of(corpus), is_language_model=False)))
    recording = folder / "12s.flac"
    recorded = corpus._replace(
        utterances=[u._replace(audio=recording, within=None) for u in corpus.utterances]
    )
    eighth = lambda rows: np.arange(rows // 8)
    began = time.perf_counter()
    epochs = Epochs(plan_of(recorded))
    stream = training_batches(
        recorded, epochs, data=config.data, sample_rate_hz=RATE_HZ, local_rows=eighth
    )
    first = len(next(stream).samples)
    figures["planned, and a first batch read"] = {f"{first} rows": time.perf_counter() - began}
    print(f"planned, and read {first} rows of the first batch: {time.perf_counter() - began:.2f} s")

    for name, augment in (
        ("speed alone", config.augment),
        ("speed, tempo, joins", AugmentConfig(tempo_range=(0.9, 1.1), join_probability=0.1)),
    ):
        plan = plan_of(corpus, augment)
        number = plan.number_of_batches(0)
        for epoch in (1, 50):
            for state in ("counted", "kept"):
                began = time.perf_counter()
                Epochs(plan, cache_path=folder / "epochs.json").locate(epoch * number)
                seconds = time.perf_counter() - began
                figures.setdefault(f"position found, {name}", {})[f"{epoch}, {state}"] = seconds
                print(f"position in epoch {epoch} ({name}), {state}: {seconds:.3f} s")
            (folder / "epochs.json").unlink()
    characters = float(np.mean([len(text) for text in transcripts]))
    return {"utterances": len(corpus.utterances), "characters": characters, "seconds": figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path)
    parser.add_argument("--flac", action="store_true", help="store the recordings as FLAC first")
    parser.add_argument(
        "--planning", action="store_true", help="measure planning of 960 synthetic hours"
    )
    options, overrides = parser.parse_known_args()
    cores = len(os.sched_getaffinity(0))
    result: dict = {"cores": cores, "soxr": soxr.__version__, "grain": grain.__version__}
    result |= {"soundfile": soundfile.__version__, "sentencepiece": sentencepiece.__version__}
    with tempfile.TemporaryDirectory() as folder:
        if options.planning:
            result["planning"] = planning(Path(folder))
        if options.config:
            config = override(load_config(options.config), overrides)
            (Path(folder) / "run").mkdir()
            corpus, _ = training_corpus(config, Path(folder) / "run")
            if options.flac:
                corpus = corpus._replace(utterances=as_flac(corpus.utterances, Path(folder)))
            noise, impulse_responses = effects(Path(folder))
            threads = config.data.read_threads
            print(f"{options.config}, {cores} core(s), {threads} threads")
            result |= {"config": str(options.config), "flac": options.flac, "threads": threads}
            result |= reading(config, corpus, noise, impulse_responses)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
