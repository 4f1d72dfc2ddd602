"""docs/architecture.md and its picture describe the package as it is."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs" / "pictures" / "architecture.py"
spec = importlib.util.spec_from_file_location("architecture", SCRIPT)
assert spec is not None and spec.loader is not None
architecture = importlib.util.module_from_spec(spec)
spec.loader.exec_module(architecture)


def described_files(page: str) -> list[str]:
    """Return the files of the tree in the page, a folder as its __init__.py."""
    tree = page.partition("```\nasr_jax/")[2].partition("```")[0]
    files, folders = ["asr_jax/__init__.py"], ["asr_jax"]
    for line in tree.splitlines()[1:]:
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        assert len(line.split()) > 1, f"{name} has no description"
        files.append("/".join([*folders, name.rstrip("/"), *["__init__.py"] * name.endswith("/")]))
        folders.append(name.rstrip("/"))
    return files


def test_the_page_has_one_line_for_every_file():
    described = described_files(architecture.PAGE.read_text(encoding="utf-8"))
    package = ROOT / "asr_jax"
    files = [path for path in package.rglob("*") if path.suffix in (".py", ".css", ".js")]
    assert sorted(described) == sorted(path.relative_to(ROOT).as_posix() for path in files)


def test_the_page_states_the_import_rules():
    page = architecture.PAGE.read_text(encoding="utf-8")
    assert architecture.with_rules(page) == page, "run python docs/pictures/architecture.py"


def test_the_picture_is_drawn_from_the_import_rules():
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.draw(), (
        "run python docs/pictures/architecture.py"
    )


def test_an_arrow_that_others_imply_is_left_out():
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set()}
    assert architecture.reduced(graph) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert architecture.floors(graph) == {"a": 3, "b": 2, "c": 1, "d": 0}
