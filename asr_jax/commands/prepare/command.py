"""`asr-jax prepare SOURCE OUT`: check recordings once and store them for fast training starts."""

import collections
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
from asr_jax.data.recording_checks import checked_entry
from asr_jax.data.recordings import FAR_BEYOND_FULL_SCALE
from asr_jax.data.sources.librispeech_archives import ADDRESS, ARCHIVES, read_archive
from asr_jax.data.sources.prepared import Entry, is_prepared, read_prepared, write_prepared
from asr_jax.errors import UsageError, name_full_disk
from asr_jax.survey.rows import Row
from asr_jax.types import Skipped, Utterance


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
    name = str(out or options.source)
    dropped: list[Skipped] = []
    rows: list[Row] = []
    places: dict[str, Utterance] = {}
    beyond: list[str] = []

    def noted() -> Iterator[Utterance | Skipped]:
        for utterance in utterances:
            if out is None and isinstance(utterance, Utterance):
                places[utterance.id] = utterance
            yield utterance

    with Progress(
        TextColumn("{task.description}"), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(name)

        def entries() -> Iterator[Entry]:
            for result in _checked(noted(), options):
                if isinstance(result, Skipped):
                    dropped.append(result)
                    continue
                entry, levels = result
                seconds = entry.duration_seconds
                rows.append(Row(entry.id, entry.text, entry.speaker, seconds, levels))
                if entry.gain > FAR_BEYOND_FULL_SCALE:
                    beyond.append(entry.id)
                progress.update(task, description=f"{name}: {len(rows)} recordings")
                yield entry
            if not rows:
                first = f", the first is {dropped[0].id}: {dropped[0].reason}" if dropped else ""
                raise ValueError(f"{name}: none of {len(dropped)} recordings can be stored{first}")

        if out is None:
            collections.deque(entries(), maxlen=0)
        else:
            with name_full_disk(out):
                out.parent.mkdir(parents=True, exist_ok=True)
                write_prepared(out, entries())
    if out is not None:
        with name_full_disk(out):
            print(write_report(out, np.array([row.seconds for row in rows]), dropped))
        places = {utterance.id: utterance for utterance in read_prepared(out)}
    page = options.page or (out or Path()) / "data.html"
    with name_full_disk(page.parent):
        write_data_page(page, name, rows, dropped, places, options.config)
    print(f"what is in the data: {page}")
    if beyond:
        print(
            f"{len(beyond)} recordings, the first is {beyond[0]}, have samples beyond "
            f"{FAR_BEYOND_FULL_SCALE:g} times full scale, and are stored so; if they are 16-bit "
            "samples in a float file, divide them by 32768 and prepare them again"
        )
    if out is not None:
        _print_unfit(out, options)


def _print_unfit(out: Path, options: Options) -> None:
    """Print what training with --config would leave out, by its run's tokenizer if there is one."""
    path = options.config
    if path is not None:
        trained = path.with_name("tokenizer.model")
        tokenizer = trained if path.name == "config.json" and trained.exists() else None
        print(write_unfit(out, load_config(path), str(path), tokenizer=tokenizer))


def _checked(
    utterances: Iterable[Utterance | Skipped], options: Options
) -> Iterator[tuple[Entry, Levels] | Skipped]:
    """Yield the utterances in order, checked by threads that work a few utterances ahead."""

    def check(utterance: Utterance | Skipped) -> tuple[Entry, Levels] | Skipped:
        if isinstance(utterance, Skipped):
            return utterance
        return checked_entry(
            utterance, min_seconds=options.min_seconds, max_seconds=options.max_seconds
        )

    with ThreadPoolExecutor(options.threads) as pool:
        ahead: collections.deque[Future[tuple[Entry, Levels] | Skipped]] = collections.deque()
        for utterance in utterances:
            ahead.append(pool.submit(check, utterance))
            if len(ahead) > 4 * options.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
