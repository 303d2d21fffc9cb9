"""The wheel: what is in it, what it depends on, and that it works where the checkout is not."""

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ONLY_THE_APP = {"gradio", "av", "filelock"}
OPTIONAL = {"cv2", "lpips", "torchmetrics"}  # without them evaluation leaves figures out and says why
INDIRECT = {"fsspec", "pyarrow"}  # parts of what `datasets` itself requires
SAMPLE = ("--given", "embedding=a dark red apple", "--wanted", "image", "label", "--steps", "2")


def names(requirements):
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def run(*command, **options):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the sources, without a network: building leaves files beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "mmdiff", folder / "mmdiff", ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist")
    run(sys.executable, "-m", "pip", "wheel", *options, ".", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment with the wheel, and what the tests have of other packages."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    interpreter = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run(sys.executable, "-m", "pip", f"--python={interpreter}", "install", "--no-deps", "--no-index", wheel)
    own = run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (Path(own) / "others.pth").write_text("\n".join(others))
    return interpreter


@pytest.mark.slow
def test_every_file_of_the_library_is_in_the_wheel_and_nothing_else(wheel):
    files = [path for path in ROOT.glob("mmdiff/**/*") if path.is_file() and path.suffix != ".pyc"]
    sources = {path.relative_to(ROOT).as_posix() for path in files}
    packages = {Path(source).parent.as_posix() for source in sources}
    assert packages >= {"mmdiff", "mmdiff/autoencoder", "mmdiff/modalities"}
    assert all(f"{package}/__init__.py" in sources for package in packages)
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == sources


@pytest.mark.slow
def test_the_wheel_does_not_require_what_only_the_app_needs(wheel):
    (distribution,) = importlib.metadata.distributions(path=[str(wheel)])
    assert names(distribution.requires) == names(PROJECT["dependencies"])
    assert not names(distribution.requires) & ONLY_THE_APP
    source = (ROOT / "mmdiff/__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{distribution.version}"' in source


def test_the_requirements_of_the_demo_are_those_of_the_library_and_three_more():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert {line for line in lines if Requirement(line).name not in ONLY_THE_APP} == set(
        PROJECT["dependencies"]
    )
    assert names(lines) - names(PROJECT["dependencies"]) == ONLY_THE_APP


def test_whatever_the_library_imports_is_among_its_requirements():
    imported = set()
    for path in ROOT.glob("mmdiff/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    others = imported - set(sys.stdlib_module_names) - {"mmdiff"} - OPTIONAL - INDIRECT
    packages = importlib.metadata.packages_distributions()
    required = names(PROJECT["dependencies"])
    assert "torch" in others
    missing = [name for name in others if not {*map(canonicalize_name, packages[name])} & required]
    assert not missing


@pytest.mark.slow
def test_an_installed_wheel_runs_a_checkpoint_by_its_path(python, tmp_path):
    where = run(python, "-c", "import mmdiff.autoencoder.network as m; print(m.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(python.parents[1]) and not Path(where).is_relative_to(ROOT)
    run(python, "-m", "mmdiff.sample", ROOT / "checkpoints/orchard", *SAMPLE, cwd=tmp_path)
    results = json.loads((tmp_path / "samples/results.json").read_text())
    assert results["settings"]["steps"] == 2 and results["label"]
    assert Image.open(tmp_path / "samples/00_image.png").size == (96, 96)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sample", "train", "evaluate", "folder"])
def test_the_commands_of_an_installed_wheel_explain_themselves(python, tmp_path, command):
    assert f"python -m mmdiff.{command}" in run(python, "-m", f"mmdiff.{command}", "--help", cwd=tmp_path)
