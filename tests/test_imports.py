"""Imports run one way: app.py -> app -> mmdiff.pipeline -> the rest of mmdiff, which knows no gradio."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*ROOT.glob("mmdiff/**/*.py"), *ROOT.glob("app/**/*.py"), ROOT / "app.py"])
ENTRY = "app.py"  # the script has the name of the package


def module_of(path: Path) -> str:
    """mmdiff/clip/data.py -> mmdiff.clip.data"""
    if path == ROOT / "app.py":
        return ENTRY
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imports(path: Path, only_at_import: bool = False) -> Iterator[str]:
    """Names of the modules that a file imports, anywhere in it or only while it is imported itself."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif only_at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif only_at_import and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        else:
            pending.extend(ast.iter_child_nodes(node))


def packages(name: str) -> set[str]:
    """Top-level packages of everything that a module imports anywhere."""
    return {imported.split(".")[0] for imported in imports(MODULES[name])}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("mmdiff")])
def test_mmdiff_knows_neither_gradio_nor_the_app(name):
    assert not packages(name) & {"gradio", "gradio_client", "app"}


def test_the_app_is_where_gradio_is():
    """Otherwise the test above would pass for want of anything to find."""
    assert any("gradio" in packages(name) for name in MODULES if name.startswith("app"))


def test_nothing_imports_the_script():
    assert (ROOT / "app" / "__init__.py").exists()  # without it `python app.py` would import itself
    importers = {name for name in MODULES if "app" in packages(name)}
    assert importers and all(name.startswith("app") for name in importers)


def test_the_pipeline_is_above_the_rest():
    """Only the package's front door and the commands, which stand above it, import the pipeline."""
    core = [name for name in MODULES if name.startswith("mmdiff")]
    importers = {name for name in core if "mmdiff.pipeline" in imports(MODULES[name])}
    evaluation = {name for name in core if name.startswith("mmdiff.evaluat")}
    assert importers <= {"mmdiff", "mmdiff.training.refit", "mmdiff.sample", *evaluation}


def test_there_are_no_cycles():
    graph = {}
    for name, path in MODULES.items():
        targets = {imported for imported in imports(path, only_at_import=True) if imported in MODULES}
        if path.name == "__init__.py":  # a package is complete once its own modules are
            graph.setdefault(name, set()).update(targets)
        else:
            parent = name.rpartition(".")[0]
            graph[name] = targets - {name} - ({parent} if parent else set())
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) >= set(MODULES)


def test_all_of_mmdiff_can_be_imported_without_gradio():
    names = [name for name in MODULES if name.startswith("mmdiff")]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'gradio', 'gradio_client', 'app', 'fastapi'}, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_public_names():
    """The front door is light: torch waits until a public name is used."""
    code = (
        "import sys, mmdiff\n"
        "assert 'torch' not in sys.modules\n"
        "assert mmdiff.Pipeline.__module__ == 'mmdiff.pipeline'\n"
        "assert mmdiff.NoiseSchedule.__module__ == 'mmdiff.schedule'\n"
        "assert all(hasattr(mmdiff, name) for name in mmdiff.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
