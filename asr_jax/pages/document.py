"""A page as a whole, in the style of every page; it may not load anything from the network."""

from html import escape
from importlib.resources import files

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 media-src 'self' data: file:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
"""


def asset(part: str, name: str) -> str:
    """Return a file of a part of the package, such as report.css of scoring."""
    return files(f"asr_jax.{part}").joinpath(name).read_text(encoding="utf-8")


def page_style() -> str:
    """Return the CSS that all pages share: colors in light and dark, letters, and the elements."""
    return asset("pages", "page.css")


def render_document(
    heading: str, subtitle: str, sections: str, *, title: str, style: str, after: str = ""
) -> str:
    """Return a page. `sections`, and the data and scripts `after` them, are HTML; others are text.

    `title` is the name of the window, and `style` the CSS that this page has besides page_style.
    """
    return f"""{HEAD}<title>{escape(title)}</title>
<style>{page_style()}{style}</style>
</head>
<body>
<main>
<header><h1 dir="auto">{escape(heading)}</h1><p>{escape(subtitle)}</p></header>
{sections}
</main>
{after}</body>
</html>
"""
