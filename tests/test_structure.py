"""The sources stay readable: short files, short functions, few parameters."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("mmdiff", "app", "benchmarks", "tests")
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in FOLDERS
    for path in sorted(ROOT.glob(f"{folder}/**/*.py"))
}
FILE_LINES = 400
FUNCTION_LINES = 45
PARAMETERS = 8
MANY_PARAMETERS = {"app/api.py: Endpoints.generate"}  # the fields of the HTTP API

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(node: ast.AST, within: str = "") -> Iterator[tuple[str, Function]]:
    """Every function of a module with its name, such as `Endpoints.generate`."""
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, Function | ast.ClassDef)
        name = f"{within}{child.name}" if named else within
        if isinstance(child, Function):
            yield name, child
        yield from functions(child, f"{name}." if named else within)


def lines(function: Function) -> int:
    return function.end_lineno - function.lineno + 1


def parameters(function: Function) -> int:
    """Named parameters without `self` and `cls`."""
    of = function.args
    names = [argument.arg for argument in (*of.posonlyargs, *of.args, *of.kwonlyargs)]
    return sum(name not in ("self", "cls") for name in names)


EVERY = {
    f"{path}: {name}": node for path, source in SOURCES.items() for name, node in functions(ast.parse(source))
}


def test_files_are_short():
    """Those of the tests may be longer."""
    counts = {path: source.count("\n") for path, source in SOURCES.items()}
    assert not {
        path: count
        for path, count in counts.items()
        if count > FILE_LINES and path.split("/")[0] in ("mmdiff", "app")
    }


def test_functions_are_short():
    assert not {name: lines(node) for name, node in EVERY.items() if lines(node) > FUNCTION_LINES}


def test_functions_have_few_parameters():
    counts = {name: parameters(node) for name, node in EVERY.items()}
    assert {name for name, count in counts.items() if count > PARAMETERS} == MANY_PARAMETERS


def test_functions_are_found_wherever_they_are():
    source = "class A:\n def f(self, a, *b, c=0, **d):\n  if a:\n   def g(): pass\nasync def h(a, /): pass\n"
    found = dict(functions(ast.parse(source)))
    assert {name: parameters(node) for name, node in found.items()} == {"A.f": 2, "A.f.g": 0, "h": 1}
    assert lines(found["A.f"]) == 3
