"""The origin of parameters that another publisher trained: source, license and attribution.

An imported model has an origin. A run that starts from its parameters takes it over, and every
export states it, as licenses such as CC BY demand.
"""

from collections.abc import Mapping
from typing import NamedTuple

_PREFIX = "origin."


class Origin(NamedTuple):
    """The origin of parameters; fields that the source does not state are empty."""

    source: str
    """The file or folder that was imported."""
    license: str
    attribution: str
    """Whom and what to name: author, title, notices."""


def origin_metadata(origin: Origin | None) -> dict[str, str]:
    """Return an origin as metadata of a file, or as entries of a JSON object."""
    if origin is None:
        return {}
    return {f"{_PREFIX}{name}": value for name, value in origin._asdict().items()}


def origin_of(metadata: Mapping[str, object]) -> Origin | None:
    """Return the origin in a file's metadata, or None."""
    if f"{_PREFIX}source" not in metadata:
        return None
    return Origin(*(str(metadata.get(f"{_PREFIX}{name}", "")) for name in Origin._fields))


def license_lines(origin: Origin) -> str:
    """Return the model card's lines about the license of parameters with an origin."""
    license = origin.license or f"not stated by {origin.source}: TO BE FILLED IN"
    attribution = origin.attribution or f"not stated by {origin.source}"
    return (
        f"- the parameters derive from {origin.source}\n"
        f"- its license: {license}\n"
        f"- attribution: {attribution}\n"
    )
