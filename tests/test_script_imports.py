"""Imports that no type checker sees: in programs that stand as text in a test, and in functions of the benchmarks."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.places import ROOT, TESTS

OWN = {"vht_federate", "connector", "strategies", "synth", "deploy", "kit", "benchmarks"}


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import of our own, at any depth; no name where the module itself is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] in OWN)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OWN:
            yield from ((str(node.module), alias.name) for alias in node.names)


def programs_in(path: Path) -> Iterator[ast.AST]:
    """What is Python among the texts of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
            try:
                yield ast.parse(node.value)
            except SyntaxError:
                continue


def missing(imports: Iterator[tuple[str, str | None]]) -> list[str]:
    lacking = []
    for module, name in sorted(set(imports), key=str):
        try:
            loaded = importlib.import_module(module)
            if name is not None and not hasattr(loaded, name):
                importlib.import_module(f"{module}.{name}")
        except ImportError:
            lacking.append(f"{module} {name or ''}".strip())
    return lacking


def test_programs_that_stand_as_text_in_tests_import_what_there_is() -> None:
    programs = [program for path in sorted({*TESTS.rglob("*.py")} - {Path(__file__)}) for program in programs_in(path)]
    imports = {imported for program in programs for imported in imports_of(program)}
    assert len(imports) > 20, "they are found"
    assert missing(iter(imports)) == []


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_imports_what_there_is(path: Path) -> None:
    assert missing(imports_of(ast.parse(path.read_text()))) == []


def test_what_is_gone_is_missing() -> None:
    """The control."""
    text = "def f():\n    from connector.fhir.sources import export, pull\n    import connector.gone\n"
    assert missing(imports_of(ast.parse(text))) == ["connector.fhir.sources export", "connector.gone"]
