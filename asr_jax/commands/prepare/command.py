"""`asr-jax prepare SOURCE OUT`: recordings checked once, and stored to start training fast."""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from asr_jax.audio import AudioError
from asr_jax.commands.arguments import parse
from asr_jax.commands.prepare.download import download
from asr_jax.commands.prepare.report import write_report, write_unfit
from asr_jax.config_file import load_config
from asr_jax.data.manifest import read_manifest
from asr_jax.data.recording_checks import validated
from asr_jax.data.recordings import recording_seconds, whole_recording
from asr_jax.data.sources.librispeech_archives import (
    ADDRESS,
    ARCHIVES,
    ArchivedUtterance,
    read_archive,
)
from asr_jax.data.sources.prepared import Entry, is_prepared, write_prepared
from asr_jax.errors import name_full_disk
from asr_jax.types import Skipped, Utterance

Task = Callable[[], Entry | Skipped]
# Manifests round durations; what lacks so little of a recording is the whole of it.
ROUNDING_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Options:
    """Checks every recording of SOURCE, and stores those that can be trained on in OUT."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """librispeech, or any DATA: a folder in its layout, a manifest, a prepared dataset, ..."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write, which then is a DATA. Of LibriSpeech it holds a folder for each part, each
    of them a DATA."""
    parts: tuple[str, ...] = tuple(ARCHIVES)
    """Parts of LibriSpeech."""
    archives: Path | None = None
    """Where LibriSpeech's archives, or folders unpacked from them, are at hand; what is missing is
    fetched into it. OUT/archives where not given."""
    address: str = ADDRESS
    """Of a mirror to fetch LibriSpeech's archives from."""
    min_seconds: float = 0.1
    """Shorter recordings are dropped."""
    max_seconds: float = math.inf
    """Longer ones too."""
    config: Path | None = None
    """Of a training: lists in OUT/unfit.jsonl what it would leave out, as recordings too short for
    their text under its objective."""
    threads: int = 4
    """That decode recordings to check them."""


def run(arguments: list[str]) -> int:
    options = parse(Options, arguments, program="asr-jax prepare")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads}: must be positive")
    if not 0 <= options.min_seconds <= options.max_seconds:
        raise ValueError(
            f"--min-seconds {options.min_seconds:g} --max-seconds {options.max_seconds:g}: "
            "needs 0 <= shortest <= longest"
        )
    if options.config is not None:
        load_config(options.config)  # not after hours of preparing
    if options.source != "librispeech":
        if options.out.name in ("", ".."):
            raise ValueError(f"OUT = {options.out}: say the name of a folder to make")
        if options.out.exists() and any(options.out.iterdir()):
            raise ValueError(f"OUT = {options.out}: exists and is not empty; choose another")
        tasks = lambda: _of_data(options.source, options)
        _prepare(options.out, tasks, options, console)
        return 0
    for part in options.parts:
        if part not in ARCHIVES:
            raise ValueError(f"--parts {part}: must be of {', '.join(ARCHIVES)}")
    for part in options.parts:
        if is_prepared(options.out / part):
            console.print(f"{options.out / part}: prepared already")
            _print_unfit(options.out / part, options)
            continue
        where = options.archives or options.out / "archives"
        folders = [where / part, where / "LibriSpeech" / part]
        folder = next((f for f in folders if f.is_dir()), None)
        if folder is not None:
            tasks = functools.partial(_of_data, str(folder), options)
        else:
            archive = where / f"{part}.tar.gz"
            _fetch(part, archive, options.address, console)
            tasks = functools.partial(_of_archive, archive, options)
        _prepare(options.out / part, tasks, options, console)
    return 0


def _fetch(part: str, path: Path, address: str, console: Console) -> None:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console) as progress:
        known = ARCHIVES[part]
        download(
            f"{address}/{path.name}",
            path,
            size_bytes=known.size_bytes,
            sha256=known.sha256,
            progress=progress,
        )


def _prepare(
    out: Path, tasks: Callable[[], Iterable[Task | Skipped]], options: Options, console: Console
) -> None:
    dropped: list[Skipped] = []
    seconds: list[float] = []
    with Progress(
        TextColumn("{task.description}"), console=console, disable=not console.is_terminal
    ) as progress:
        shown = progress.add_task(f"{out}")

        def entries() -> Iterator[Entry]:
            for result in _in_order(tasks(), options.threads):
                if isinstance(result, Skipped):
                    dropped.append(result)
                    continue
                seconds.append(result.duration_seconds)
                progress.update(shown, description=f"{out}: {len(seconds)} recordings")
                yield result
            if not seconds:
                first = f", the first is {dropped[0].id}: {dropped[0].reason}" if dropped else ""
                raise ValueError(f"{out}: none of {len(dropped)} recordings can be stored{first}")

        with name_full_disk(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            write_prepared(out, entries())
    with name_full_disk(out):
        print(write_report(out, np.array(seconds), dropped))
    _print_unfit(out, options)


def _print_unfit(out: Path, options: Options) -> None:
    """What training by --config would leave out, with its run's tokenizer where it has one."""
    path = options.config
    if path is not None:
        beside = path.with_name("tokenizer.model")
        tokenizer = beside if path.name == "config.json" and beside.exists() else None
        print(write_unfit(out, load_config(path), str(path), tokenizer=tokenizer))


def _in_order(tasks: Iterable[Task | Skipped], threads: int) -> Iterator[Entry | Skipped]:
    """What the tasks give, in their order, a few ahead of who takes it."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: collections.deque[Future[Entry | Skipped]] = collections.deque()
        for task in tasks:
            ahead.append(pool.submit(task if callable(task) else functools.partial(_same, task)))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _same(one: Skipped) -> Skipped:
    return one


def _of_archive(archive: Path, options: Options) -> Iterator[Task | Skipped]:
    for one in read_archive(archive):
        if isinstance(one, ArchivedUtterance):
            yield functools.partial(
                validated, *one, path=archive / f"{one.id}.flac", **_limits(options)
            )
        else:
            yield one


def _of_data(data: str, options: Options) -> Iterator[Task | Skipped]:
    utterances, skipped = read_manifest(data)
    yield from skipped
    for utterance in utterances:
        yield functools.partial(_of_utterance, utterance, options)


def _of_utterance(utterance: Utterance, options: Options) -> Entry | Skipped:
    try:
        contents = whole_recording(utterance)
        ends = utterance.offset_seconds + utterance.duration_seconds
        is_whole = ends >= recording_seconds(utterance) - ROUNDING_SECONDS
        is_whole &= utterance.offset_seconds == 0
    except AudioError as error:
        return Skipped(utterance.id, error.reason)
    return validated(
        utterance.id,
        utterance.text,
        utterance.speaker,
        contents,
        path=utterance.audio,
        offset_seconds=utterance.offset_seconds,
        duration_seconds=None if is_whole else utterance.duration_seconds,
        channel=utterance.channel,
        **_limits(options),
    )


def _limits(options: Options) -> dict[str, float]:
    return {"min_seconds": options.min_seconds, "max_seconds": options.max_seconds}
