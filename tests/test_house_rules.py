"""Rules for reading: short functions, few parameters, docstrings that stand alone, plain words."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "asr_jax").rglob("*.py"))
FOLDERS = ("asr_jax", "benchmarks", "configs", "docs", "examples", "tests")
ALL = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MOST_LINES = 60
MOST_PARAMETERS = 8
# Functions of the losses take their arrays as separate arguments, as the field does, and a block
# takes the sizes and the layers of its parts; their docstrings say so.
MANY_PARAMETERS = {
    "asr_jax/layers/conformer.py: __init__",
    "asr_jax/layers/transformer.py: __init__",
    "asr_jax/losses/_alignment.py: transducer_alignment",
    "asr_jax/losses/_tdt.py: tdt_loss",
    "asr_jax/losses/_transducer.py: transducer_loss",
}
# Openings of docstrings that continue the name above them instead of standing alone.
LEANING = r"(Of|With|By|As|What|Whether|The same)\b"
# Words put in the order of another language.
CALQUES = r"goes on|is told|so many|lies (in|on|there)|anew|shall"


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_no_function_is_longer_than_a_screen(path):
    long = [
        f"{node.name}: {lines} lines"
        for node in functions(path)
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > MOST_LINES
    ]
    assert long == []


def test_functions_have_few_parameters():
    many = {
        f"{name_of(path)}: {node.name}"
        for path in PACKAGE
        for node in functions(path)
        if len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]) > MOST_PARAMETERS
    }
    assert many == MANY_PARAMETERS


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_docstrings_stand_alone(path):
    documented = ast.Module, ast.ClassDef, ast.FunctionDef
    leaning = [
        docstring.splitlines()[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, documented) and (docstring := ast.get_docstring(node))
        if re.match(LEANING, docstring)
    ]
    assert leaning == []


def opens_text_without_encoding(call: ast.Call) -> bool:
    """Return whether a call reads or writes text in the encoding of the user's locale."""
    named = {keyword.arg for keyword in call.keywords}
    match call.func:
        case ast.Attribute(attr="read_text" | "write_text"):
            return "encoding" not in named
        case ast.Name(id="open") | ast.Attribute(attr="open"):
            modes = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
            return modes in (["a"], ["r"], ["w"], ["x"]) and "encoding" not in named
    return False


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_text_files_have_one_encoding_whatever_the_locale(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert [call.lineno for call in calls if opens_text_without_encoding(call)] == []


def test_texts_are_in_plain_english():
    this_file = f":!{name_of(Path(__file__))}"
    search = ["git", "grep", "-wiE", CALQUES, "--", ":!LICENSE", ":!samples", this_file]
    done = subprocess.run(search, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900
