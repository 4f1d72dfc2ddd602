"""The imports, libraries, clock, environment and files that each part may use, by syntax tree."""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "asr_jax"
# Every module of the package under its dotted name without `asr_jax.`, and its syntax tree.
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted(PACKAGE.rglob("*.py"))
}
# What each part of the package, a folder or a file, may import of the package. A name stands for a
# module and all modules below it. A module belongs to the part with the longest matching name.
MAY_IMPORT = {
    "__init__": "inference.model",
    "__main__": "commands errors text_files",
    "config": "",
    "types": "",
    "audio": "audio",
    "text": "",
    "text_files": "",
    "errors": "",
    "config_file": "config errors",
    "losses": "losses",
    "features": "config features",
    "layers": "layers",
    "models": "config layers models",
    "data": "audio config data text text_files types",
    "distributed": "config distributed errors",
    "training": "config distributed features layers losses models training types",
    "capacity": "capacity config distributed features layers losses models training types",
    "decoding": "config decoding features layers losses models text text_files types",
    "pages": "pages",
    "survey": "audio.levels pages survey types",
    "scoring": "pages scoring text_files types",
    "export": "config decoding export features layers models text types",
    "pretrained": "config export.origin features pretrained text text_files",
    "inference": "audio capacity.flops config config_file data decoding distributed errors export "
    "features inference models text training.checkpoint types",
    "experiment": "capacity.flops config config_file data distributed errors experiment features "
    "inference layers models scoring text text_files training types",
    "commands": "audio capacity commands config config_file data decoding distributed errors "
    "experiment export features inference layers models pages pretrained scoring survey text "
    "text_files training types",
}
# The libraries that a part may import; a part that is not listed may import any.
LIBRARIES = {
    "config": "",
    "types": "jaxtyping numpy",
    "losses": "jax jaxtyping numpy",
    "features": "jax jaxtyping numpy",
    "layers": "flax jax jaxtyping",
    "models": "flax jax jaxtyping",
    "audio": "jaxtyping numpy soundfile soxr",
    "text": "jaxtyping numpy sentencepiece",
    "text_files": "",
    "data": "array_record grain jaxtyping numpy pyarrow tensorflow_datasets",
    "pages": "numpy",
    "pretrained": "jax numpy safetensors sentencepiece yaml",
    "survey": "numpy",
    "scoring": "jaxtyping numpy rapidfuzz whisper_normalizer",
}
# All other parts are functions of their arguments alone: they do not look at the clock, at the
# command line and the environment, or at files.
READS_CLOCK = (
    "commands distributed.lease distributed.processes distributed.rendezvous inference.recognizer "
    "inference.streaming training.loop training.metrics_log training.progress"
)
READS_CALL = "__main__ commands distributed"
OPENS_FILES = (
    "audio commands config_file data decoding.hotwords decoding.ngram distributed experiment "
    "export inference pages.document pretrained scoring.comparison scoring.report "
    "text text_files training.checkpoint training.frozen_storage training.metrics_log"
)
# The methods of pathlib.Path that no other object in the package has.
FILE_METHODS = set(
    "exists glob is_dir is_file iterdir mkdir open read_bytes read_text rename rglob rmdir touch "
    "unlink write_bytes write_text".split()
)

every_module = pytest.mark.parametrize("module", MODULES)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names of all imports anywhere in a file; a.b for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports must be absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attributes(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield (name, attribute) for every `name.attribute` and `from name import attribute`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield (node.value.id if isinstance(node.value, ast.Name) else "", node.attr)
        elif isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


def file_accesses(tree: ast.AST) -> Iterator[str]:
    """Yield every call of open() or of a file method of pathlib.Path, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id == "open":
                yield f"line {node.lineno}: open"
            elif isinstance(called, ast.Attribute) and called.attr in FILE_METHODS:
                yield f"line {node.lineno}: .{called.attr}"


def is_below(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def part_of(module: str) -> str:
    parts = [name for name in MAY_IMPORT if is_below(module, [name])]
    assert parts, f"asr_jax.{module} belongs to no part that MAY_IMPORT lists"
    return max(parts, key=len)


@every_module
def test_module_imports_only_the_parts_it_may(module):
    allowed = MAY_IMPORT[part_of(module)].split()
    own = [
        name.partition(".")[2] for name in imports(MODULES[module]) if is_below(name, ["asr_jax"])
    ]
    assert [name for name in own if not is_below(name, allowed)] == []


@every_module
def test_module_imports_only_the_libraries_it_may(module):
    if part_of(module) in LIBRARIES:
        libraries = LIBRARIES[part_of(module)].split()
        allowed = {"asr_jax", *libraries, *sys.stdlib_module_names}
        roots = {name.partition(".")[0] for name in imports(MODULES[module])}
        assert roots <= allowed, f"it imports {roots - allowed}"


def test_parts_depend_on_each_other_in_one_direction():
    """No part can reach itself through other parts: what is allowed above has no cycle."""
    needs = {
        part: {part_of(name) for name in names.split()} - {part}
        for part, names in MAY_IMPORT.items()
    }
    sorted_parts: set[str] = set()
    while len(sorted_parts) < len(needs):
        ready = {part for part in needs.keys() - sorted_parts if needs[part] <= sorted_parts}
        assert ready, f"a cycle among {sorted(needs.keys() - sorted_parts)}"
        sorted_parts |= ready


def test_only_the_entry_point_benchmarks_and_tests_import_commands():
    users = [part for part, names in MAY_IMPORT.items() if "commands" in names.split()]
    assert users == ["__main__", "commands"]
    importers = {
        folder
        for folder in ("benchmarks", "configs", "docs", "launch", "samples", "tests")
        for path in (ROOT / folder).rglob("*.py")
        for name in imports(ast.parse(path.read_text()))
        if is_below(name, ["asr_jax.commands"])
    }
    assert importers == {"benchmarks", "tests"}


@every_module
def test_only_commands_see_arguments_and_environment(module):
    # sys.stderr, sys.stdlib_module_names and sys.maxsize do not depend on the call.
    call = {("sys", "argv"), ("os", "environ"), ("os", "getenv"), ("os", "putenv")}
    assert is_below(module, READS_CALL.split()) or not call & set(attributes(MODULES[module]))


@every_module
def test_only_commands_and_progress_look_at_the_clock(module):
    clocks = {name for name in imports(MODULES[module]) if is_below(name, ["time", "datetime"])}
    assert is_below(module, READS_CLOCK.split()) or not clocks


@every_module
def test_only_parts_that_read_or_write_data_touch_files(module):
    assert is_below(module, OPENS_FILES.split()) or list(file_accesses(MODULES[module])) == []


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
        ("with open('x') as f: pass", lambda t: any(file_accesses(t))),
        ("Path('x').read_text()", lambda t: any(file_accesses(t))),
    ],
)
def test_violations_are_detected(source, rule):
    assert rule(ast.parse(source))
