"""Imports run one way: app.py -> app -> mmdiff.pipeline -> the rest of mmdiff, which knows no gradio."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("mmdiff", "app", "benchmarks")
ENTRY = "app.py"  # the script has the name of the package
ABOVE_THE_PIPELINE = ("mmdiff.sample", "mmdiff.evaluate", "mmdiff.evaluation", "mmdiff.training.refit")


def module_of(path: Path) -> str:
    """mmdiff/clip/data.py -> mmdiff.clip.data"""
    if path == ROOT / "app.py":
        return ENTRY
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [ROOT / "app.py", *(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/**/*.py"))]
MODULES = {module_of(path): path for path in sorted(FILES)}


def of(folder: str) -> list[str]:
    """Names of the modules of a top-level package."""
    return [name for name in MODULES if name.split(".")[0] == folder and name != ENTRY]


def imports(name: str, for_types: bool = True) -> Iterator[str]:
    """Names of all modules that a module imports, inside functions, too, and those in `if TYPE_CHECKING`."""
    pending: list[ast.AST] = [ast.parse(MODULES[name].read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            pending.extend(node.orelse)
        else:
            pending.extend(ast.iter_child_nodes(node))


def parents(name: str) -> set[str]:
    """mmdiff.clip.data -> mmdiff, mmdiff.clip"""
    parts = name.split(".")
    return {".".join(parts[:k]) for k in range(1, len(parts))}


def targets(name: str) -> set[str]:
    """Modules of ours that must be complete before a module works: what it imports, and their packages.

    Its own packages are left out: a package is complete once its modules are. Names that a package hands on
    are followed to the package.
    """
    found = {imported for imported in imports(name, for_types=False) if imported in MODULES}
    found |= {parent for imported in found for parent in parents(imported)} & MODULES.keys()
    return found - {name} - parents(name)


def packages(name: str) -> set[str]:
    """Top-level packages of everything that a module imports anywhere."""
    return {imported.split(".")[0] for imported in imports(name)}


@pytest.mark.parametrize("name", of("mmdiff"))
def test_mmdiff_knows_neither_gradio_nor_what_stands_on_it(name):
    assert not packages(name) & {"gradio", "gradio_client", "app", "benchmarks", "tests"}


@pytest.mark.parametrize("name", of("benchmarks"))
def test_benchmarks_never_import_the_app(name):
    assert not packages(name) & {"gradio", "gradio_client", "app"}


def test_the_app_is_where_gradio_is():
    """Otherwise the tests above would pass for want of anything to find."""
    assert any("gradio" in packages(name) for name in of("app"))


def test_only_the_app_and_its_script_import_the_app():
    assert (ROOT / "app" / "__init__.py").exists()  # without it `python app.py` would import itself
    importers = {name for name in MODULES if "app" in packages(name)}
    assert ENTRY in importers and importers <= {ENTRY, *of("app")}
    assert not any("benchmarks" in packages(name) for name in (ENTRY, *of("app")))


def test_the_pipeline_is_above_the_rest():
    """Only the package's front door and the commands, which stand above it, import the pipeline."""
    importers = {name for name in of("mmdiff") if "mmdiff.pipeline" in imports(name)}
    below = {name for name in importers - {"mmdiff"} if not name.startswith(ABOVE_THE_PIPELINE)}
    assert importers and not below


def test_no_import_leads_back_to_its_module():
    """Imports inside functions count, as they hide a circle without ending it."""
    try:
        order = list(TopologicalSorter({name: targets(name) for name in MODULES}).static_order())
    except CycleError as error:
        pytest.fail(f"modules import one another: {' <- '.join(error.args[1])}")
    assert set(order) == set(MODULES)


def test_all_of_mmdiff_can_be_imported_without_gradio():
    code = (
        "import importlib, sys\n"
        f"for name in {of('mmdiff')!r}:\n"
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
