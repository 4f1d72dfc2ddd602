"""Config files: Python files that end in `config = Config(...)`, and the config.json of a run.

A config.json is data: its fields are checked against the types in asr_jax/config.py, and nothing in
it is executed. Every mistake is reported in one line that names the file.
"""

import dataclasses
import difflib
import json
import os
import re
import runpy
import traceback
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from asr_jax.config import Config, flatten
from asr_jax.errors import UsageError

# Fields that had other names in earlier versions.
FORMER_NAMES = {
    "augment.rooms": "augment.impulse_responses",
    "augment.room_probability": "augment.impulse_response_probability",
    "augment.time_mask_share": "augment.time_mask_fraction",
    "optimizer.final_learning_rate_share": "optimizer.final_learning_rate_ratio",
    "train.rollback_learning_rate_share": "train.rollback_learning_rate_factor",
}


def load_config(path: Path) -> Config:
    """Return the config of a .py file (its `config`), of a run's config.json, or a shipped one.

    A name without a folder and a suffix, such as `librispeech_960h_l`, names a shipped config, a
    file of configs/, unless something has that path.
    """
    path = _shipped(path)
    if (path / "config.json").is_file():
        raise UsageError(f"{path}: a run directory; its config is {path / 'config.json'}")
    if not path.is_file():
        raise UsageError(f"{path}: no such config file{_nearest_file(path)}")
    flat = _json_fields(path) if path.suffix == ".json" else _python_fields(path)
    try:
        return _make_config(flat)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def write_config(config: Config, path: Path) -> None:
    """Write config.json atomically: on a full disk the old file survives."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(flatten(config), indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the most similar of `names`, or "" if none is similar."""
    similar = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {similar[0]}?" if similar else ""


def _shipped(path: Path) -> Path:
    """Return the file of the shipped config that is named so, or the path as it is."""
    if path.exists() or path.name != str(path) or path.suffix:
        return path
    package = Path(__file__).parent
    # A wheel carries configs/ inside the package; a checkout has it next to the package.
    shipped = (folder / "configs" / f"{path}.py" for folder in (package, package.parent))
    return next((file for file in shipped if file.is_file()), path)


def _make_config(flat: Mapping[str, object]) -> Config:
    """Return the config with these values, by dotted name, and with defaults elsewhere."""
    config, known = Config(), flatten(Config())
    sections: dict[str, dict[str, object]] = {}
    for name, value in flat.items():
        if name in FORMER_NAMES:
            raise UsageError(
                f"{name}: field of an earlier version of asr_jax, now {FORMER_NAMES[name]}; runs "
                "of that version cannot be read, train again"
            )
        if name not in known:
            raise UsageError(f"unknown field {name!r}{nearest(name, known)}")
        section, _, field = name.partition(".")
        annotation = get_type_hints(type(getattr(config, section)))[field]
        sections.setdefault(section, {})[field] = _typed(value, annotation, name)
    replaced = {
        section: dataclasses.replace(getattr(config, section), **values)
        for section, values in sections.items()
    }
    return dataclasses.replace(config, **replaced)


def _typed(value: object, annotation: object, name: str) -> object:
    """Return the field's value as the type of its annotation, or raise UsageError."""
    optional = isinstance(annotation, types.UnionType)
    if optional and value is None:
        return None
    if optional:
        (annotation,) = (option for option in get_args(annotation) if option is not type(None))
    origin, arguments = get_origin(annotation), get_args(annotation)
    expected = _kind(arguments[0]) if origin is Literal else _EXPECTED[origin or annotation]
    if _kind(value) != expected:
        raise UsageError(f"{name} = {value!r}: must be {expected}{' or null' if optional else ''}")
    # 8.0 equals 8, but is not the integer that the annotation lists.
    if origin is Literal and not any(value == x and isinstance(value, type(x)) for x in arguments):
        raise UsageError(f"{name} = {value!r}: must be one of {', '.join(map(repr, arguments))}")
    if origin is tuple and isinstance(value, list | tuple):
        return _typed_tuple(value, arguments, name)
    if annotation is int and not isinstance(value, int):
        raise UsageError(f"{name} = {value!r}: must be an integer")
    try:
        return float(value) if annotation is float and isinstance(value, int | float) else value
    except OverflowError:
        raise UsageError(f"{name}: an integer of {len(str(value))} digits is too large") from None


def _typed_tuple(
    values: list | tuple, annotations: tuple[object, ...], name: str
) -> tuple[object, ...]:
    if annotations[-1] is Ellipsis:
        annotations = annotations[:1] * len(values)
    if len(values) != len(annotations):
        raise UsageError(f"{name} = {values!r}: must be a list of {len(annotations)}")
    return tuple(
        _typed(value, annotation, f"{name}[{index}]")
        for index, (value, annotation) in enumerate(zip(values, annotations))
    )


def _kind(value: object) -> str:
    """Return the JSON name of the value's type, so that neither "yes" nor 1 passes for true."""
    names = {
        bool: "true or false",
        str: "a string",
        (int, float): "a number",
        (list, tuple): "a list",
        type(None): "null",
    }
    return next((name for type_, name in names.items() if isinstance(value, type_)), "an object")


# The JSON name of the values that an annotation accepts.
_EXPECTED: dict[object, str] = {
    bool: "true or false",
    str: "a string",
    int: "a number",
    float: "a number",
    tuple: "a list",
}


def _json_fields(path: Path) -> dict[str, object]:
    try:
        flat = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: not JSON: {error}") from error
    if not isinstance(flat, dict):
        raise UsageError(f'{path}: must be an object of fields, such as "encoder.layers": 12')
    return flat


def _python_fields(path: Path) -> dict[str, object]:
    try:
        config = runpy.run_path(str(path)).get("config")
        if isinstance(config, Config):
            for name, section in vars(Config()).items():
                if not isinstance(value := getattr(config, name), type(section)):
                    raise TypeError(f"{name} = {value!r}: must be {type(section).__name__}(...)")
            return flatten(config)
    except Exception as error:
        raise UsageError(f"{path}{_line_of(error, path)}: {_with_nearest_field(error)}") from error
    raise UsageError(f"{path}: must end in `config = Config(...)`")


def _line_of(error: Exception, path: Path) -> str:
    """Return ":LINE", the line of the config file where the error occurred, or ""."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f":{lines[-1]}" if lines else ""


def _nearest_file(path: Path) -> str:
    siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
    if not path.suffix and path.name == str(path):
        siblings += [p.stem for p in _shipped(Path("quickstart")).parent.glob("*.py")]
    return nearest(str(path), siblings)


def _with_nearest_field(error: Exception) -> str:
    message = getattr(error, "msg", str(error)).split("\n")[0] or type(error).__name__
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    if not unknown:
        return message
    class_name, name = unknown.groups()
    sections = {type(section).__name__: section for section in vars(Config()).values()}
    names = [field.name for field in dataclasses.fields(sections.get(class_name, Config()))]
    return f"{class_name} has no field {name!r}{nearest(name, names)}"
