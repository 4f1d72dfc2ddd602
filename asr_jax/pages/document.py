"""The beginning and the style of every page, which may not load anything from the network."""

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


def page_style() -> str:
    """Return the CSS that all pages share: colors in light and dark, letters, headings."""
    return files("asr_jax.pages").joinpath("page.css").read_text(encoding="utf-8")
