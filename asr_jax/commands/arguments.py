"""Command lines to typed options; every mistake is one line. tyro does the parsing."""

import contextlib
import functools
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import tyro

from asr_jax.config import Config
from asr_jax.config_file import load_config, nearest
from asr_jax.errors import UsageError

T = TypeVar("T")


def parse(
    schema: type[T], arguments: Sequence[str], *, program: str, default: T | None = None
) -> T:
    """Return the dataclass filled in from `arguments`; print help and exit if they ask for it."""
    complaint = io.StringIO()
    cli = functools.partial(tyro.cli, schema, args=list(arguments), prog=program)
    try:
        with contextlib.redirect_stderr(complaint), _unbroken_lines(arguments):
            return cast(T, cli() if default is None else cli(default=default))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(complaint.getvalue())) from None


def parse_after_config(
    schema: Callable[..., T], arguments: Sequence[str], *, program: str
) -> tuple[Path, T]:
    """CONFIG, the first argument, and `schema(config=...)` with what follows it filled in."""
    first = arguments[0] if arguments else "-"
    helped = first in ("-h", "--help")
    if first.startswith("-") and not helped:
        raise UsageError("CONFIG must come first: a file of configs/, or a run's config.json")
    config = Config() if helped else load_config(Path(first))
    default = schema(config=config)
    rest = ["--help"] if helped else arguments[1:]
    return Path(first), parse(type(default), rest, program=f"{program} CONFIG", default=default)


def override(config: Config, arguments: Sequence[str]) -> Config:
    """Return the config with the fields that `arguments` name replaced."""
    return parse(Config, arguments, program="asr-jax", default=config)


def require_folder(path: Path, name: str) -> None:
    """Raises UsageError where a file is in the way of the folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{name} {path}: must be a folder, it is a file")


@contextlib.contextmanager
def _unbroken_lines(arguments: Sequence[str]) -> Iterator[None]:
    """Keeps tyro from breaking a complaint, words and all, at the terminal's width; help it may."""
    before = os.environ.get("COLUMNS")
    if not {"-h", "--help"} & set(arguments):
        os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _one_line(complaint: str) -> str:
    """What stands within the box that tyro draws, in one sentence, with the nearest name it found.

    The box is of lines where stdout takes UTF-8, else of a title and dashes.
    """
    lines = [line.strip("│ ") for line in complaint.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    if "╭" not in complaint:
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
        # Of options that tyro finds alike, which it lists by name: --decoder.layers comes first.
        similar = rf"(?:Perhaps you meant|Arguments similar to {re.escape(unknown[1])}):\n(.*)"
        listed = re.search(similar, text, re.DOTALL)
        message += nearest(unknown[1], re.findall(r"^--\S+", listed[1], re.M)) if listed else ""
    for pattern, plainer in _PLAINER:
        message = re.sub(pattern, plainer, message)
    return message


_PLAINER = (
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
