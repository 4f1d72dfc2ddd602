"""Command lines and config files to typed values; every mistake is one line.

tyro does the parsing. A config.json is read as if its fields stood on the command line, so both
know the same names, types and rules, and nothing in it is ever executed.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import os
import re
import runpy
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import tyro

from asr_jax.config import Config, flatten

T = TypeVar("T")


class UsageError(ValueError):
    """Something on the command line or in a config file that cannot be; one line."""


def parse(
    schema: type[T], arguments: Sequence[str], *, program: str, default: T | None = None
) -> T:
    """Fills the dataclass from `arguments`; prints help and exits where that is asked for."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), _unbroken_lines(arguments):
            return cast(T, tyro.cli(schema, args=list(arguments), prog=program, **options))
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


def require_folder(path: Path, name: str) -> None:
    """Raises UsageError where a file is in the way of the folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{name} {path}: must be a folder, it is a file")


def load_config(path: Path, overrides: Sequence[str] = (), *, program: str = "") -> Config:
    """The config of a .py file (its `config`) or of a run's config.json, with overrides applied."""
    return parse(Config, overrides, program=program or str(path), default=_read_config(path))


def write_config(config: Config, path: Path) -> None:
    """Replaces the file as a whole: one on a full disk is not lost."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(flatten(config), indent=1) + "\n")
    os.replace(partial, path)


def _read_config(path: Path) -> Config:
    if (path / "config.json").is_file():
        raise UsageError(f"{path}: a run directory; its config is {path / 'config.json'}")
    if not path.is_file():
        raise UsageError(f"{path}: no such config file{_nearest_file(path)}")
    flat = _json_fields(path) if path.suffix == ".json" else _python_fields(path)
    defaults = flatten(Config())
    arguments = []
    for name, value in flat.items():
        if name not in defaults:
            raise UsageError(f"{path}: unknown field {name!r}{_nearest(name, defaults)}")
        default = defaults[name]
        if _kind(value) not in {_kind(default), "a number" if default is None else ""}:
            expected = "a number or null" if default is None else _kind(default)
            raise UsageError(f"{path}: {name} = {value!r}: must be {expected}")
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            part, field = option.rsplit(".", 1)
            arguments.append(option if value else f"{part}.no-{field}")
        elif isinstance(value, list | tuple):
            arguments += [option, *map(str, value)]
        else:
            arguments.append(f"{option}={value}")
    try:
        return parse(Config, arguments, program=str(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _json_fields(path: Path) -> dict[str, Any]:
    try:
        flat = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(flat, dict):
        raise UsageError(f'{path}: must be an object of fields, such as "encoder.layers": 12')
    return flat


def _python_fields(path: Path) -> dict[str, Any]:
    try:
        found = runpy.run_path(str(path)).get("config")
        if isinstance(found, Config):
            for name, section in vars(Config()).items():
                if not isinstance(value := getattr(found, name), type(section)):
                    raise TypeError(f"{name} = {value!r}: must be {type(section).__name__}(...)")
            return flatten(found)
    except Exception as error:
        raise UsageError(f"{path}{_line_of(error, path)}: {_with_nearest_field(error)}") from error
    raise UsageError(f"{path}: must end in `config = Config(...)`")


def _kind(value: object) -> str:
    """What JSON would call it, so that neither "yes" nor 1 passes for true."""
    kinds = {
        bool: "true or false",
        str: "a string",
        (int, float): "a number",
        (list, tuple): "a list",
        type(None): "null",
    }
    return next((kind for types, kind in kinds.items() if isinstance(value, types)), "an object")


def _line_of(error: Exception, path: Path) -> str:
    """The config file's line at which the error arose, where it did there."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def _nearest_file(path: Path) -> str:
    beside = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    return _nearest(str(path), beside)


def _with_nearest_field(error: Exception) -> str:
    message = getattr(error, "msg", str(error)).split("\n")[0] or type(error).__name__
    unexpected = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message
    )
    if not unexpected:
        return message
    sections = {type(part).__name__: part for part in vars(Config()).values()}
    owner = sections.get(unexpected[1], Config())
    names = [field.name for field in dataclasses.fields(owner)]
    return f"{unexpected[1]} has no field {unexpected[2]!r}{_nearest(unexpected[2], names)}"


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
        message += _nearest(unknown[1], re.findall(r"^--\S+", listed[1], re.M)) if listed else ""
    for pattern, plainer in _PLAINER:
        message = re.sub(pattern, plainer, message)
    return message


_PLAINER = (
    (r"^Error parsing \S+: (?=\w+\.\w+ = )", ""),
    (r"^Error parsing (\S+):", r"\1:"),
    (r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number"),
    (r"could not convert string to float: (.*)", r"\1 is no number"),
    (r"Missing value for argument '(\S+)'\..*", r"\1: needs a value"),
    (
        r"invalid choice (.*) for argument '(\S+)'\. Expected one of \((.*?),?\)\.",
        r"\2: \1 is not one of \3",
    ),
)
