"""Fields of another program's config, with errors that name field, value and what is supported."""

import reprlib
from collections.abc import Mapping
from typing import NamedTuple

_SHORT = reprlib.Repr()
_SHORT.maxstring = 80


class Fields(NamedTuple):
    """A part of a config."""

    name: str
    """Its name for messages, such as encoder; empty for the whole config."""
    values: Mapping[str, object]

    def part(self, name: str) -> "Fields":
        """Return the mapping at `name`; a part that is not stated has no fields."""
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.error(name, "must be an object of fields")
        return Fields(self._full(name), value)

    def stated(self, name: str) -> object:
        """Return a value, or None where none is stated."""
        return self.values.get(name)

    def number(self, name: str, default: float) -> float:
        """Return a number, or the default where none is stated."""
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "must be a number")
        return float(value)

    def integer(self, name: str, default: int) -> int:
        """Return an integer that is not negative, or the default where none is stated."""
        value = self.values.get(name)
        if value is None:
            return default
        if type(value) is not int or value < 0:
            raise self.error(name, "must be an integer that is not negative")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of integers; empty where none is stated."""
        values = self.values.get(name)
        if values is None:
            return ()
        if isinstance(values, list | tuple) and all(type(value) is int for value in values):
            return tuple(values)
        raise self.error(name, "must be a list of integers")

    def require(self, name: str, *supported: object) -> None:
        """Raise ValueError for a stated value that is not supported; null counts as not stated."""
        value = self.values.get(name)
        equal = [option for option in supported if _same(option, value)]
        if value is not None and not equal:
            options = [option for option in supported if option is not None]
            rule = " or ".join(map(_shown, options)) if options else "null"
            raise self.error(name, f"is not supported, must be {rule}")

    def require_known(self, *names: str) -> None:
        """Raise ValueError for a field that may change the mathematics in a way unknown here.

        A field that is null, false, 0 or empty switches nothing on.
        """
        for name, value in self.values.items():
            if name not in names and value:
                raise self.error(name, "is a field that import does not know, must be null")

    def error(self, name: str, rule: str) -> ValueError:
        """Return the error of a field."""
        return ValueError(f"{self._full(name)} = {_shown(self.values.get(name))}: {rule}")

    def _full(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def _same(option: object, value: object) -> bool:
    """Return whether values are equal; 1 is not True, but 1 is 1.0."""
    return option == value and isinstance(option, bool) == isinstance(value, bool)


def _shown(value: object) -> str:
    """Return a value as YAML writes it, shortened."""
    names = {None: "null", True: "true", False: "false"}
    return names[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)
