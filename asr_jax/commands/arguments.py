"""Command lines and config files to typed values; every mistake is one line.

tyro does the parsing. A config.json is read as if its fields stood on the command line, so both
know the same names, types and rules, and nothing in it is ever executed.
"""

import contextlib
import dataclasses
import difflib
import io
import json
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from asr_jax.config import Config, flatten

T = TypeVar("T")


class UsageError(ValueError):
    """Something on the command line or in a config file that cannot be; one line."""


def parse(
    schema: type[T], arguments: Sequence[str], *, program: str, default: T | None = None
) -> T:
    """Fills the dataclass from `arguments`; prints help and exits where that is asked for."""
    options = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(schema, args=list(arguments), prog=program, **options)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_line(complaint.getvalue())) from None


def load_config(path: Path, overrides: Sequence[str] = (), *, program: str = "") -> Config:
    """The config of a .py file (its `config`) or of a run's config.json, with overrides applied."""
    return parse(Config, overrides, program=program or str(path), default=_read_config(path))


def write_config(config: Config, path: Path) -> None:
    path.write_text(json.dumps(flatten(config), indent=1) + "\n")


def _read_config(path: Path) -> Config:
    if not path.is_file():
        raise UsageError(f"{path}: no such config file{_nearest_file(path)}")
    if path.suffix == ".json":
        return _config_from_json(path)
    try:
        found = runpy.run_path(str(path)).get("config")
    except Exception as error:
        raise UsageError(f"{path}: {_with_nearest_field(error)}") from error
    if not isinstance(found, Config):
        raise UsageError(f"{path}: must end in `config = Config(...)`")
    return found


def _config_from_json(path: Path) -> Config:
    try:
        flat = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(flat, dict):
        raise UsageError(f'{path}: must be an object of fields, such as "encoder.layers": 12')
    defaults = flatten(Config())
    arguments = []
    for name, value in flat.items():
        if name not in defaults:
            raise UsageError(f"{path}: unknown field {name!r}{_nearest(name, defaults)}")
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            part, field = option.rsplit(".", 1)
            arguments.append(option if value else f"{part}.no-{field}")
        elif isinstance(value, list):
            arguments += [option, *map(str, value)]
        else:
            arguments += [option, str(value)]
    try:
        return parse(Config, arguments, program=str(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def _nearest_file(path: Path) -> str:
    beside = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    return _nearest(str(path), beside)


def _with_nearest_field(error: Exception) -> str:
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    unexpected = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message
    )
    if not unexpected:
        return message
    sections = {type(part).__name__: part for part in vars(Config()).values()}
    owner = sections.get(unexpected[1], Config())
    names = [field.name for field in dataclasses.fields(owner)]
    return f"{unexpected[1]} has no field {unexpected[2]!r}{_nearest(unexpected[2], names)}"


def _one_line(complaint: str) -> str:
    """The sentence within the box that tyro draws, and the nearest name that it found."""
    lines = [re.sub(r"^[│|]\s?|\s*[│|]$", "", line) for line in complaint.splitlines()]
    lines = [line for line in lines if not line.startswith(("╭", "╰"))]
    rules = [i for i, line in enumerate(lines) if line.startswith("──")] or [len(lines)]
    message = " ".join(line.strip() for line in lines[: rules[0]])
    message = re.sub(r"^Error parsing (\S+): (\1\.\w+ = )", r"\2", message)
    hint = re.search(r"Perhaps you meant:\s*(--\S+)", "\n".join(lines))
    return message + (f"; did you mean {hint[1]}?" if hint else "")
