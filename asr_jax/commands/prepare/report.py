"""Reports on a prepared dataset: durations, dropped recordings, and what a config leaves out."""

import collections
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from asr_jax.audio.samples import AudioError, as_mp3, mean_at_rate
from asr_jax.config import Config
from asr_jax.config_file import load_config
from asr_jax.data.buckets import Buckets
from asr_jax.data.recordings import read_recording_channels, stored_gain
from asr_jax.data.selection import WITHOUT_CTC
from asr_jax.data.sources.prepared import read_prepared
from asr_jax.experiment.corpus import limits_of, training_corpus, usable_utterances
from asr_jax.experiment.tasks import task_of
from asr_jax.experiment.training_buckets import buckets_for, describe_buckets, training_lengths
from asr_jax.pages.elements import counted
from asr_jax.pages.histogram import histogram, histogram_picture
from asr_jax.survey.gathered import Survey
from asr_jax.survey.page import render_data_page
from asr_jax.text import Tokenizer
from asr_jax.text_files import escaped, one_line
from asr_jax.types import Skipped, Utterance

BAR_WIDTH, PRINTED_BARS = 50, 15
DEFAULT_CONFIG = "own_data"
SNIPPET_HZ, SNIPPET_SECONDS = 16_000, 15.0


def write_report(out: Path, seconds: np.ndarray, dropped: Sequence[Skipped]) -> str:
    """Write dropped.jsonl and durations.svg into `out`; return the text to print."""
    reasons = _list(out / "dropped.jsonl", dropped)
    hours = f"{counted(len(seconds), 'recording')}, {seconds.sum() / 3600:.2f} hours"
    spread = f"median {np.median(seconds):.3g} s, {seconds.min():.3g} to {seconds.max():.3g} s"
    picture = histogram_picture(seconds, one_line(f"{out.name}: {hours}"), spread, "seconds")
    (out / "durations.svg").write_text(picture, encoding="utf-8")
    counts, edges = histogram(seconds, PRINTED_BARS)
    lines = [f"{out}: {hours} (histogram in durations.svg)"]
    for count, low, high in zip(counts, edges, edges[1:]):
        bar = "#" * round(BAR_WIDTH * count / counts.max())
        lines.append(f"{low:7.5g} to {high:6.5g} s {count:8d} {bar}")
    return "\n".join([*lines, *(f"dropped: {reason}" for reason in reasons)])


def write_data_page(
    page: Path,
    name: str,
    utterances: list[Utterance],
    survey: Survey,
    config: Path | None,
) -> None:
    """Write the page that shows what is in the data; `utterances` are the usable ones."""
    html = render_data_page(name, utterances, survey, _shapes(utterances, config), _snippet)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(escaped(html), encoding="utf-8")


def _snippet(utterance: Utterance) -> bytes | None:
    """Return the beginning of a recording to listen to, even if it is not all of the utterance."""
    seconds = min(SNIPPET_SECONDS, utterance.duration_seconds)  # 15 for NaN
    try:
        channels, rate_hz = read_recording_channels(utterance._replace(duration_seconds=seconds))
        channels = np.nan_to_num(channels) * np.float32(stored_gain(utterance))
        try:
            samples = mean_at_rate(utterance.audio, channels, rate_hz, sample_rate_hz=SNIPPET_HZ)
        except AudioError:  # the channels cancel each other
            first = channels[:, :1]
            samples = mean_at_rate(utterance.audio, first, rate_hz, sample_rate_hz=SNIPPET_HZ)
    except AudioError:
        return None
    return as_mp3(samples, SNIPPET_HZ)


def _shapes(utterances: list[Utterance], path: Path | None) -> str:
    """Return the table of the batches that training with the config would have on one device."""
    name = str(path or DEFAULT_CONFIG)
    try:
        config = load_config(path or Path(DEFAULT_CONFIG))
        if config.objective.is_language_model:
            return f"{name}: a language model does not train on recordings"
        data = replace(config.data, train=name, more_train=(), train_weights=())
        config = replace(config, data=data)
        stated = Buckets.of(config.data)
        with tempfile.TemporaryDirectory() as folder:
            corpus, tokenizer = training_corpus(
                config,
                Path(folder),
                limits=limits_of(config, stated),
                read=lambda _: (utterances, []),
            )
        buckets = stated or buckets_for(
            config,
            training_lengths(config, corpus),
            tokenizer.vocabulary_size,
            parts=config.train.accumulate,
        )
        plan = task_of(config).plan(config, corpus, buckets)
    except (ValueError, OSError) as error:
        return f"{name}: {error}"
    return "\n".join([f"{name}, one device", *describe_buckets(plan, is_language_model=False)])


def write_unfit(out: Path, config: Config, name: str, *, tokenizer: Path | None) -> str:
    """Write unfit.jsonl, what training with the config would leave out; return the text to print.

    `tokenizer` is the model of the config's run, if it has one. Nothing is written if the tokenizer
    is yet to be trained and is not one of characters: then the labels are unknown.
    """
    utterances = read_prepared(out)
    if path := tokenizer or config.tokenizer.model:
        model = Tokenizer.load(path)
    elif config.tokenizer.kind == "char":
        with tempfile.TemporaryDirectory() as folder:
            texts = [utterance.text for utterance in utterances]
            model = Tokenizer.train(
                texts,
                kind="char",
                vocabulary_size=0,
                path=Path(folder) / "tokenizer.model",
                normalization=config.tokenizer.normalization,
            )
    else:
        return (
            f"{name}: cannot tell which recordings are too short for their text, because its "
            f"{config.tokenizer.kind} tokenizer is yet to be trained; pass a run's config.json, "
            "next to its tokenizer.model"
        )
    _, _, unfit = usable_utterances(config, utterances, model)
    reasons = _list(out / "unfit.jsonl", unfit)
    if not unfit:
        return f"{name}: all of {out} can be trained on"
    return "\n".join(
        f"{name}: {reason}" if WITHOUT_CTC in reason else f"{name} would leave out: {reason}"
        for reason in reasons
    )


def _list(path: Path, skipped: Sequence[Skipped]) -> list[str]:
    """Write the skipped utterances to a file; return a summary line for each kind of reason."""
    lines = (json.dumps(item.listed()) + "\n" for item in skipped)
    path.write_text("".join(lines), encoding="utf-8")
    kinds = collections.Counter(item.reason.partition(":")[0] for item in skipped)
    return [
        f"{number} recordings, {kind} (listed in {path})" for kind, number in kinds.most_common()
    ]
