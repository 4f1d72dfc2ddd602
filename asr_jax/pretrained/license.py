"""License and attribution, as a model card or a config states them."""

import re
from collections.abc import Iterable, Mapping

import yaml

# Fields of the front matter, of model_config.yaml and of config.json.
_LICENSE = ("license", "licence")
_LICENSE_DETAILS = ("license_name", "license_link")
_NAMED = ("attribution", "author", "authors", "creator", "copyright", "organization", "publisher")
_HEADING = re.compile(r"#+\s*(.*)")
_ABOUT_LICENSE = re.compile(r"licen[sc]e|attribution|copyright|credits", re.IGNORECASE)
_NOTICE = re.compile(r"attribution|copyright|\N{COPYRIGHT SIGN}|developed by|created by", re.I)
_MOST_CHARACTERS = 2000


def stated_license(fields: Mapping[str, object], card: str) -> tuple[str, str]:
    """Return license and attribution; empty where neither the fields nor the card state them.

    Args:
        fields: those of the model's config.
        card: its model card in Markdown, with YAML between lines of --- first; or empty.
    """
    front, body = _front_matter(card)
    stated = {**fields, **front}
    licenses = [*_texts(stated, _LICENSE), *_texts(stated, _LICENSE_DETAILS)]
    named = [*_texts(stated, _NAMED), *_notices(body)]
    return ", ".join(dict.fromkeys(licenses)), "; ".join(dict.fromkeys(named))


def _front_matter(card: str) -> tuple[Mapping[str, object], str]:
    parts = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(?:\n|$)(.*)", card, re.DOTALL)
    if not parts:
        return {}, card
    try:
        fields = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        fields = None
    return (fields if isinstance(fields, dict) else {}), parts[2]


def _texts(fields: Mapping[str, object], names: Iterable[str]) -> list[str]:
    values = [fields.get(name) for name in names]
    lists = [value if isinstance(value, list) else [value] for value in values]
    return [" ".join(str(value).split()) for values in lists for value in values if value]


def _notices(body: str) -> list[str]:
    """Return the card's title, its sections about the license, and notices elsewhere."""
    title, is_about_license = "", False
    section: list[str] = []
    notices: list[str] = []
    for line in body.splitlines():
        heading = _HEADING.match(line)
        if heading:
            title = title or heading[1].strip()
            is_about_license = bool(_ABOUT_LICENSE.search(heading[1]))
        elif is_about_license:
            section.append(line)
        elif _NOTICE.search(line):
            notices.append(line)
    texts = [title, " ".join(section), *notices]
    return [shown for text in texts if (shown := " ".join(text.split())[:_MOST_CHARACTERS])]
