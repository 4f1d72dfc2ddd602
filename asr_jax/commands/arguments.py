"""Command lines parsed by tyro to typed options; every mistake is reported in one line."""

import contextlib
import errno
import functools
import io
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import tyro

from asr_jax.config import Config
from asr_jax.config_file import load_config, nearest
from asr_jax.errors import UsageError
from asr_jax.text_files import escaped

T = TypeVar("T")


def parse(
    schema: type[T], arguments: Sequence[str], *, program: str, default: T | None = None
) -> T:
    """Return the dataclass filled in from `arguments`; print help and exit if they ask for it.

    An option that is given twice is a mistake: tyro alone would drop the first without a word.
    """
    stderr = io.StringIO()
    cli = functools.partial(tyro.cli, schema, args=list(arguments), prog=program)
    try:
        with contextlib.redirect_stderr(stderr), _unbroken_lines(arguments):
            options = cast(T, cli() if default is None else cli(default=default))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(stderr.getvalue())) from None
    _require_each_once(arguments)
    return options


def parse_after_config(
    schema: Callable[..., T], arguments: Sequence[str], *, program: str
) -> tuple[Path, T]:
    """Return CONFIG, the first argument, and `schema(config=...)` with the others filled in."""
    first = arguments[0] if arguments else "-"
    wants_help = first in ("-h", "--help")
    if first.startswith("-") and not wants_help:
        raise UsageError("CONFIG must come first: a file of configs/, or a run's config.json")
    config = Config() if wants_help else load_config(Path(first))
    default = schema(config=config)
    rest = ["--help"] if wants_help else arguments[1:]
    _require_one_dataset(rest)
    return Path(first), parse(type(default), rest, program=f"{program} CONFIG", default=default)


def override(config: Config, arguments: Sequence[str]) -> Config:
    """Return the config with the values of `arguments`, such as --encoder.layers 3."""
    return parse(Config, arguments, program="asr-jax", default=config)


def require_folder(path: Path, name: str) -> None:
    """Raise UsageError where a file has the name of the folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{name} {path}: must be a folder, it is a file")


def require_new_folder(out: Path) -> None:
    """Raise UsageError unless OUT can be made: it does not exist, or is an empty folder."""
    require_unicode(out, "OUT =")
    if out.name in ("", ".."):
        raise UsageError(f"{out}: must name a folder to create")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: already exists and is not empty; choose another folder")


def require_unicode(path: Path, name: str) -> None:
    """Raise UsageError for a folder that libraries cannot write to, since its path is not UTF-8."""
    if escaped(str(path.absolute())) != str(path.absolute()):
        raise UsageError(f"{name} {path}: its path is not UTF-8; choose another folder")


def require_writable(folder: Path, names: Sequence[str] = ()) -> None:
    """Raise OSError, naming the folder, if it cannot be made or files cannot be written into it.

    `names` are those of the files, which may exist, but not as folders. A folder that does not
    exist yet does not exist afterwards either.
    """
    for name in names:
        if (folder / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        for path in missing:
            path.rmdir()


def _require_one_dataset(arguments: Sequence[str]) -> None:
    """Raise UsageError if data.train is given several datasets."""
    datasets = []
    for option, *values in _given(arguments).get("--data.train", []):
        _, equals, value = option.partition("=")
        datasets += [value] * bool(equals) + values
    if len(datasets) > 1:
        first, *others = datasets
        raise UsageError(
            f"--data.train: takes one dataset, {first}; add the others with --data.more-train "
            f"{' '.join(others)}"
        )


def _given(arguments: Sequence[str]) -> dict[str, list[list[str]]]:
    """Return each option's words, once for each time that it is given in any of its spellings."""
    given: dict[str, list[list[str]]] = {}
    words: list[str] = []
    for argument in itertools.takewhile(lambda argument: argument != "--", arguments):
        if argument.startswith("--"):
            option = argument.partition("=")[0].replace("_", "-")
            # --features.no-remove-dc is the opposite of --features.remove-dc.
            name = re.sub(r"^(--|.*\.)no-", r"\1", option)
            words = []
            given.setdefault(name, []).append(words)
        words.append(argument)
    return given


def _require_each_once(arguments: Sequence[str]) -> None:
    """Raise UsageError for an option that is given twice."""
    for name, times in _given(arguments).items():
        if len(times) > 1:
            each = " and ".join(" ".join(words) for words in times)
            raise UsageError(
                f"{name}: is given {len(times)} times, {each}; give it once, with all its values"
            )


@contextlib.contextmanager
def _unbroken_lines(arguments: Sequence[str]) -> Iterator[None]:
    """Keep tyro from wrapping error messages at the terminal's width, which splits words."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(arguments):
        os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(error: str) -> str:
    """Return the text of tyro's error box as one sentence, with the nearest name it suggests.

    The box is drawn with lines where stdout is UTF-8, otherwise with a title and dashes.
    """
    lines = [line.strip("│ ") for line in error.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    if "╭" not in error:
        lines = lines[2:]
    is_rule = [set(line) <= set("─-") for line in [*lines, "-"]]
    message = " ".join(lines[: is_rule.index(True)])
    text = "\n".join(lines)

    missing = re.search(r"^Missing from .*:\n(\S+)", text)
    unknown = re.search(r"Unrecognized options:\s+([^\s,]+)", text)
    if missing:
        message = f"{missing[1]} is required"
    if unknown:
        message = f"unknown option {unknown[1]}" + (f", and {message}" if missing else "")
        # tyro lists similar options by name, not by similarity: --decoder.layers comes first.
        similar = rf"(?:Perhaps you meant|Arguments similar to {re.escape(unknown[1])}):\n(.*)"
        options = re.search(similar, text, re.DOTALL)
        message += nearest(unknown[1], re.findall(r"^--\S+", options[1], re.M)) if options else ""
    for pattern, replacement in _REWORDED:
        message = re.sub(pattern, replacement, message)
    return message


_REWORDED = (
    (r"^Error parsing \S+: (?=\w+\.\w+ = )", ""),
    (r"^Error parsing (\S+):", r"\1:"),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is not an integer"),
    (r"could not convert string to float: (.*)", r"\1 is not a number"),
    (r"Missing value for argument '(\S+)'\..*", r"\1: needs a value"),
    (
        r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)\.",
        r"\2: \1 is not one of \3",
    ),
)
