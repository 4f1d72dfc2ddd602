"""`asr-jax prepare SOURCE OUT`: check recordings once and store them for fast training starts."""

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from asr_jax.audio.levels import Levels
from asr_jax.commands.arguments import parse, require_unicode
from asr_jax.commands.prepare.download import download
from asr_jax.commands.prepare.report import write_data_page, write_report, write_unfit
from asr_jax.config_file import load_config
from asr_jax.data.manifest import read_manifest
from asr_jax.data.recording_checks import checked_entry, checked_recording
from asr_jax.data.recordings import FAR_BEYOND_FULL_SCALE
from asr_jax.data.sources.librispeech_archives import ADDRESS, ARCHIVES, read_archive
from asr_jax.data.sources.prepared import Entry, is_prepared, read_prepared, write_prepared
from asr_jax.errors import UsageError, name_full_disk
from asr_jax.pages.elements import counted
from asr_jax.survey.gathered import Survey
from asr_jax.types import Skipped, Utterance

Kept = TypeVar("Kept", Entry, Utterance)
Check = Callable[..., tuple[Kept, Levels] | Skipped]
"""Returns what is kept of an utterance and its levels, or why it is left out."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Check every recording of SOURCE and store the usable ones in OUT, a prepared dataset."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The word librispeech, or any dataset: a folder, a manifest, tar shards, ..."""
    out: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")] = None
    """Folder to create, which is then a dataset.
    For LibriSpeech it contains such a folder for each part. Without OUT, only --page is written."""
    page: Path | None = None
    """HTML page that shows what is in the data; default: OUT/data.html."""
    parts: tuple[str, ...] = tuple(ARCHIVES)
    """Parts of LibriSpeech."""
    archives: Path | None = None
    """Folder with LibriSpeech's archives or their unpacked folders; by default OUT/archives.
    Missing archives are downloaded into it."""
    address: str = ADDRESS
    """URL of a mirror to download LibriSpeech's archives from."""
    min_seconds: float = 0.1
    """Shorter recordings are dropped."""
    max_seconds: float = math.inf
    """Longer recordings are dropped."""
    config: Path | None = None
    """Training config: list in OUT/unfit.jsonl the recordings that it would leave out.
    Recordings that are too short for their text under its objective are listed too."""
    threads: int = 4
    """Threads that decode recordings to check them."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    options = parse(Options, arguments, program="asr-jax prepare")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    _check_options(options)
    if options.source != "librispeech":
        _prepare(options.out, _read_dataset(options.source), options, console)
        return 0
    assert options.out is not None
    for part in options.parts:
        out = options.out / part
        if is_prepared(out):
            console.print(f"{out}: prepared already")
            _print_unfit(out, options)
        else:
            _prepare(out, _read_librispeech(part, options, console), options, console)
    return 0


def _check_options(options: Options) -> None:
    """Raise ValueError if an option is wrong, before hours of preparing."""
    if options.threads < 1:
        raise ValueError(f"--threads {options.threads}: must be positive")
    if not 0 <= options.min_seconds <= options.max_seconds:
        raise ValueError(
            f"--min-seconds {options.min_seconds:g} --max-seconds {options.max_seconds:g}: "
            "needs 0 <= shortest <= longest"
        )
    if options.out is None:
        if options.page is None or options.source == "librispeech":
            raise UsageError(
                "OUT is required: the folder to create; or --page PAGE.html, to look at a dataset "
                "(not librispeech) without storing it"
            )
    else:
        require_unicode(options.out, "OUT =")
    if options.page is not None and options.source == "librispeech":
        raise UsageError("--page: each part of librispeech has its page, OUT/PART/data.html")
    if options.config is not None:
        load_config(options.config)
    if options.source == "librispeech":
        for part in options.parts:
            if part not in ARCHIVES:
                raise ValueError(f"--parts {part}: must be one of {', '.join(ARCHIVES)}")
    elif options.out is None:
        return
    elif options.out.name in ("", ".."):
        raise ValueError(f"OUT = {options.out}: must name a folder to create")
    elif options.out.exists() and any(options.out.iterdir()):
        raise ValueError(f"OUT = {options.out}: exists and is not empty; choose another folder")


def _read_dataset(data: str) -> Iterator[Utterance | Skipped]:
    utterances, skipped = read_manifest(data)
    yield from skipped
    yield from utterances


def _read_librispeech(
    part: str, options: Options, console: Console
) -> Iterator[Utterance | Skipped]:
    """Read a part from its unpacked folder if there is one, else from its archive."""
    assert options.out is not None
    archives = options.archives or options.out / "archives"
    for folder in (archives / part, archives / "LibriSpeech" / part):
        if folder.is_dir():
            return _read_dataset(str(folder))
    archive = archives / f"{part}.tar.gz"
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console) as progress:
        download(
            f"{options.address}/{archive.name}",
            archive,
            size_bytes=ARCHIVES[part].size_bytes,
            sha256=ARCHIVES[part].sha256,
            progress=progress,
        )
    return read_archive(archive)


def _prepare(
    out: Path | None, utterances: Iterable[Utterance | Skipped], options: Options, console: Console
) -> None:
    """Write the prepared dataset `out` and its reports; without `out`, only the page."""
    name, survey = str(out or options.source), Survey()
    column = TextColumn("{task.description}: {task.completed:.0f} recordings", markup=False)
    with Progress(column, console=console, disable=not console.is_terminal) as progress:
        tracked = progress.track(utterances, description=name)
        if out is None:
            kept = list(_noted(_checked(tracked, checked_recording, options), survey))
        else:
            entries = _noted(_checked(tracked, checked_entry, options), survey)
            with name_full_disk(out):
                out.parent.mkdir(parents=True, exist_ok=True)
                write_prepared(out, _at_least_one(entries, survey, name))
            kept = read_prepared(out)
    if out is not None:
        with name_full_disk(out):
            print(write_report(out, survey.rows["seconds"], survey.left_out))
    page = options.page or (out or Path()) / "data.html"
    with name_full_disk(page.parent):
        write_data_page(page, name, kept, survey, options.config)
    print(f"what is in the data: {page}")
    if out is not None:
        _print_beyond(kept, survey)
        _print_unfit(out, options)


def _print_beyond(kept: Sequence[Utterance], survey: Survey) -> None:
    """Print how many recordings have samples of the size of integers."""
    beyond = np.flatnonzero(survey.rows["peak"] > FAR_BEYOND_FULL_SCALE)
    if len(beyond):
        have = "has" if len(beyond) == 1 else "have"
        print(
            f"{counted(len(beyond), 'recording')}, the first is {kept[beyond[0]].id}, {have} "
            f"samples beyond {FAR_BEYOND_FULL_SCALE:g} times full scale, and are stored so; if "
            "they are 16-bit samples in a float file, divide them by 32768 and prepare them again"
        )


def _at_least_one(entries: Iterable[Entry], survey: Survey, name: str) -> Iterator[Entry]:
    """Yield the entries. Raises ValueError if there are none."""
    yield from entries
    if len(survey.rows) == 0:
        left_out = survey.left_out
        first = f", the first is {left_out[0].id}: {left_out[0].reason}" if left_out else ""
        raise ValueError(f"{name}: none of {len(left_out)} recordings can be stored{first}")


def _print_unfit(out: Path, options: Options) -> None:
    """Print what training with --config would leave out, by its run's tokenizer if there is one."""
    path = options.config
    if path is not None:
        trained = path.with_name("tokenizer.model")
        tokenizer = trained if path.name == "config.json" and trained.exists() else None
        print(write_unfit(out, load_config(path), str(path), tokenizer=tokenizer))


def _checked(
    utterances: Iterable[Utterance | Skipped], check: Check[Kept], options: Options
) -> Iterator[tuple[Utterance | Skipped, tuple[Kept, Levels] | Skipped]]:
    """Yield the utterances in order, checked by threads that work a few utterances ahead."""

    def checked(utterance: Utterance | Skipped) -> tuple[Kept, Levels] | Skipped:
        if isinstance(utterance, Skipped):
            return utterance
        return check(utterance, min_seconds=options.min_seconds, max_seconds=options.max_seconds)

    with ThreadPoolExecutor(options.threads) as pool:
        ahead: collections.deque[
            tuple[Utterance | Skipped, Future[tuple[Kept, Levels] | Skipped]]
        ] = collections.deque()
        for utterance in utterances:
            ahead.append((utterance, pool.submit(checked, utterance)))
            if len(ahead) > 4 * options.threads:
                read, future = ahead.popleft()
                yield read, future.result()
        for read, future in ahead:
            yield read, future.result()


def _noted(
    checked: Iterable[tuple[Utterance | Skipped, tuple[Kept, Levels] | Skipped]], survey: Survey
) -> Iterator[Kept]:
    """Yield what is kept, and note everything in the survey."""
    for utterance, result in checked:
        if isinstance(result, Skipped):
            is_read = isinstance(utterance, Utterance)
            survey.leave_out(result, utterance if is_read else result.recording)
        else:
            kept, levels = result
            survey.add(kept.duration_seconds, levels)
            yield kept
