"""Who may import whom, and who may touch the world: read off the syntax trees, nothing is run."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "asr_jax"
# Every module of the package under its dotted name without `asr_jax.`, and its syntax tree.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}
# What a folder or file may import of the package. An entry names a module or all that is below it;
# a module matches the longest key that it lies below.
MAY_IMPORT = {
    "__init__": ["inference.model"],
    "__main__": ["commands", "errors"],
    "config": [],
    "types": [],
    "audio": [],
    "text": [],
    "errors": [],
    "config_file": ["config", "errors"],
    "losses": ["losses"],
    "features": ["config", "features"],
    "layers": ["layers"],
    "models": ["config", "layers", "models"],
    "data": ["audio", "config", "data", "text", "types"],
    "distributed": ["config", "distributed", "errors"],
    "training": "config distributed features layers losses models training types".split(),
    "capacity": "capacity config distributed features layers losses models training types".split(),
    "decoding": "config decoding distributed features layers losses models text types".split(),
    "scoring": ["scoring", "types"],
    "export": ["config", "decoding", "export", "features", "layers", "models", "text", "types"],
    "inference": "audio config config_file data decoding distributed errors export features "
    "inference models text training.checkpoint types".split(),
    "experiment": "config config_file data distributed errors experiment features inference layers "
    "models scoring text training types".split(),
    "commands": "audio capacity commands config config_file data decoding distributed errors "
    "experiment export features inference layers models scoring text training types".split(),
}
# Libraries that a part may import at all; a part not listed may import any.
LIBRARIES = {
    "config": [],
    "types": ["jaxtyping", "numpy"],
    "losses": ["jax", "jaxtyping", "numpy"],
    "features": ["jax", "jaxtyping", "numpy"],
    "layers": ["flax", "jax", "jaxtyping"],
    "models": ["flax", "jax", "jaxtyping"],
    "audio": ["jaxtyping", "numpy", "soundfile", "soxr"],
    "text": ["jaxtyping", "numpy", "sentencepiece"],
    "data": ["array_record", "grain", "jaxtyping", "numpy", "tensorflow_datasets"],
    "scoring": ["jaxtyping", "numpy", "rapidfuzz", "whisper_normalizer"],
}
# Pure besides these: they alone may look at the clock, at how they were called, or at files.
READS_CLOCK = [
    *("commands", "distributed.processes", "distributed.rendezvous"),
    *("inference.recognizer", "inference.streaming"),
    *("training.loop", "training.metrics_log", "training.progress"),
]
READS_CALL = ["__main__", "commands", "distributed"]
OPENS_FILES = [
    *"audio commands config_file data decoding.hotwords decoding.ngram distributed".split(),
    *"experiment export inference scoring.comparison scoring.report scoring.report_page".split(),
    *("text", "training.checkpoint", "training.metrics_log"),
]
# Of pathlib's methods those that no other object here has.
FILE_METHODS = set(
    "exists glob is_dir is_file iterdir mkdir open read_bytes read_text rename rglob rmdir touch "
    "unlink write_bytes write_text".split()
)

every_module = pytest.mark.parametrize("module", MODULES)


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all imported modules, wherever in the file; of `from a import b`, a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attributes(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(object, attribute) of everything written `name.attribute`, or imported `from name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield (node.value.id if isinstance(node.value, ast.Name) else "", node.attr)
        elif isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


def opens_files(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id == "open":
                yield f"line {node.lineno}: open"
            elif isinstance(called, ast.Attribute) and called.attr in FILE_METHODS:
                yield f"line {node.lineno}: .{called.attr}"


def is_below(module: str, names: list[str] | dict) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def part_of(module: str) -> str:
    parts = [name for name in MAY_IMPORT if is_below(module, [name])]
    assert parts, f"asr_jax.{module} is in no part of the house that MAY_IMPORT knows"
    return max(parts, key=len)


@every_module
def test_module_imports_only_the_parts_it_may(module):
    allowed = MAY_IMPORT[part_of(module)]
    own = [
        name.partition(".")[2] for name in imports(MODULES[module]) if is_below(name, ["asr_jax"])
    ]
    assert [name for name in own if not is_below(name, allowed)] == []


@every_module
def test_module_imports_only_the_libraries_it_may(module):
    if part_of(module) in LIBRARIES:
        allowed = {"asr_jax", *LIBRARIES[part_of(module)], *sys.stdlib_module_names}
        roots = {name.partition(".")[0] for name in imports(MODULES[module])}
        assert roots <= allowed, f"it imports {roots - allowed}"


def test_parts_depend_on_each_other_in_one_direction():
    """No part can reach itself through others: what is tested above has no cycle in it."""
    beyond = {
        part: {part_of(name) for name in allowed} - {part} for part, allowed in MAY_IMPORT.items()
    }
    ready: set[str] = set()
    while len(ready) < len(beyond):
        more = {p for p, needs in beyond.items() if p not in ready and ready.issuperset(needs)}
        assert more, f"a cycle among {sorted(beyond.keys() - ready)}"
        ready |= more


@every_module
def test_only_commands_see_arguments_and_environment(module):
    # sys.stderr, sys.stdlib_module_names and sys.maxsize say nothing of how one was called.
    looks = {("sys", "argv"), ("os", "environ"), ("os", "getenv"), ("os", "putenv")}
    assert is_below(module, READS_CALL) or not looks & set(attributes(MODULES[module]))


@every_module
def test_only_the_loop_and_commands_look_at_the_clock(module):
    clocks = {name for name in imports(MODULES[module]) if is_below(name, ["time", "datetime"])}
    assert is_below(module, READS_CLOCK) or not clocks


@every_module
def test_only_the_rooms_with_a_door_touch_files(module):
    assert is_below(module, OPENS_FILES) or list(opens_files(MODULES[module])) == []


@pytest.mark.parametrize(
    "source, rule",
    [
        (
            "def f():\n    import asr_jax.models.joint",
            lambda t: "asr_jax.models.joint" in imports(t),
        ),
        ("from asr_jax import data", lambda t: "asr_jax.data" in imports(t)),
        ("from os import environ", lambda t: ("os", "environ") in attributes(t)),
        ("import sys\nprint(sys.argv[1])", lambda t: ("sys", "argv") in attributes(t)),
        ("with open('x') as f: pass", lambda t: any(opens_files(t))),
        ("Path('x').read_text()", lambda t: any(opens_files(t))),
    ],
)
def test_the_rules_see_what_breaks_them(source, rule):
    assert rule(ast.parse(source))
