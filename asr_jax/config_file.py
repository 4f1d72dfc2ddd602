"""Config files: Python files that end in `config = Config(...)`, and the config.json of a run.

A config.json is data: its fields are checked against the types in asr_jax/config.py, and nothing in
it is ever executed. Every mistake is one line that names the file.
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

# Fields that had other names in the config.json files of earlier versions.
_FORMER_NAMES = {
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
        return _config(flat)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def write_config(config: Config, path: Path) -> None:
    """Replace the file in one step, so that a full disk does not lose the old one."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(flatten(config), indent=1) + "\n")
    os.replace(partial, path)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return "; did you mean NAME?" for the most similar of `names`, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else ""


def _shipped(path: Path) -> Path:
    """Return the file of the shipped config that is named so, or the path as it is."""
    if path.exists() or path.name != str(path) or path.suffix:
        return path
    package = Path(__file__).parent
    # A wheel carries configs/ inside the package; a checkout has it next to the package.
    shipped = (folder / "configs" / f"{path}.py" for folder in (package, package.parent))
    return next((file for file in shipped if file.is_file()), path)


def _config(flat: Mapping[str, object]) -> Config:
    """Return the config that has these values under their dotted names, and defaults elsewhere."""
    config, known = Config(), flatten(Config())
    sections: dict[str, dict[str, object]] = {}
    for name, value in flat.items():
        if name in _FORMER_NAMES:
            raise UsageError(
                f"{name} is a field of an earlier version of asr_jax, now {_FORMER_NAMES[name]}: "
                "runs of that version cannot be read; train again"
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
    """Return the value of the field `name` as its annotation says, or raise UsageError."""
    choices = get_args(annotation)
    if isinstance(annotation, types.UnionType) and value is None:
        return None
    if isinstance(annotation, types.UnionType):
        (annotation,) = (choice for choice in choices if choice is not type(None))
    is_choice = get_origin(annotation) is Literal
    expected = _kind(choices[0]) if is_choice else _EXPECTED[get_origin(annotation) or annotation]
    if _kind(value) != expected:
        or_null = " or null" if type(None) in choices else ""
        raise UsageError(f"{name} = {value!r}: must be {expected}{or_null}")
    if is_choice and value not in choices:
        raise UsageError(f"{name} = {value!r}: must be one of {', '.join(map(repr, choices))}")
    if get_origin(annotation) is tuple and isinstance(value, list | tuple):
        return _typed_tuple(value, choices, name)
    if annotation is int and not isinstance(value, int):
        raise UsageError(f"{name} = {value!r}: must be an integer")
    return float(value) if annotation is float and isinstance(value, int) else value


def _typed_tuple(
    values: list | tuple, annotations: tuple[object, ...], name: str
) -> tuple[object, ...]:
    if annotations[-1] is Ellipsis:
        annotations = annotations[:1] * len(values)
    if len(values) != len(annotations):
        raise UsageError(f"{name} = {values!r}: must be a list of {len(annotations)}")
    return tuple(
        _typed(value, annotation, f"{name}[{place}]")
        for place, (value, annotation) in enumerate(zip(values, annotations))
    )


def _kind(value: object) -> str:
    """Return the JSON name of the value's type, so that neither "yes" nor 1 passes for true."""
    kinds = {
        bool: "true or false",
        str: "a string",
        (int, float): "a number",
        (list, tuple): "a list",
        type(None): "null",
    }
    return next((kind for types, kind in kinds.items() if isinstance(value, types)), "an object")


# The JSON name of what a field's annotation accepts.
_EXPECTED: dict[object, str] = {
    bool: "true or false",
    str: "a string",
    int: "a number",
    float: "a number",
    tuple: "a list",
}


def _json_fields(path: Path) -> dict[str, object]:
    try:
        flat = json.loads(path.read_text())
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
    """Return ":LINE", the config file's line at which the error arose, or nothing."""
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
    unexpected = re.search(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message
    )
    if not unexpected:
        return message
    sections = {type(part).__name__: part for part in vars(Config()).values()}
    owner = sections.get(unexpected[1], Config())
    names = [field.name for field in dataclasses.fields(owner)]
    return f"{unexpected[1]} has no field {unexpected[2]!r}{nearest(unexpected[2], names)}"
