"""What hosts read: the front matter of a Space, the Dockerfile, attributes of large files, ZeroGPU."""

import fnmatch
import importlib
import importlib.machinery
import inspect
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import gradio
import pytest
import yaml
from huggingface_hub import metadata_load
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "pinned"),
    *("license", "short_description", "suggested_hardware", "tags"),
}
LARGE = 10 * 1000 * 1000


@pytest.fixture(scope="module")
def space():
    return yaml.safe_load((ROOT / "README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_the_front_matter_is_one_that_spaces_accept(space):
    assert metadata_load(ROOT / "README.md") == space  # as the Hub's own reader sees it
    assert set(space) <= KEYS
    assert space["sdk"] == "gradio" and (ROOT / space["app_file"]).is_file()
    assert {space["colorFrom"], space["colorTo"]} <= COLOURS
    assert 0 < len(space["short_description"]) <= 60
    assert len(space["emoji"]) == 1 and ord(space["emoji"]) > 0x2000
    assert space["pinned"] is False and space["license"] == "apache-2.0"


def test_the_versions_are_those_of_the_requirements(space):
    lines = (ROOT / "requirements.txt").read_text().split()
    wanted = {r.name: r.specifier for r in map(Requirement, lines)}
    version = space["sdk_version"]
    assert isinstance(version, str) and version in wanted["gradio"]
    assert Version(version) <= Version(gradio.__version__)  # one that was tested, or an older one
    python = re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())[1]
    assert isinstance(space["python_version"], str) and space["python_version"] in SpecifierSet(python)


def test_the_readme_below_the_front_matter_is_whole():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.split("\n---\n", 1)[1].startswith("# mmdiff\n")
    assert "(docs/hosting.md)" in text and (ROOT / "docs/hosting.md").is_file()


def instructions():
    """(name, arguments) of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def test_the_container_runs_the_app_as_an_ordinary_user():
    steps = instructions()
    assert steps[0][0] == "FROM"
    base = re.fullmatch(r"python:(3\.\d+)-slim", steps[0][1])[1]
    assert Version(base) >= Version("3.11")
    names = [name for name, _ in steps]
    (user,) = (value for name, value in steps if name == "USER")
    assert user == "1000" and names.index("USER") < names.index("CMD")
    assert any("useradd --uid 1000" in value for name, value in steps if name == "RUN")
    (command,) = (json.loads(value) for name, value in steps if name == "CMD")
    assert command == ["python", "app.py", "--host", "0.0.0.0", "--port", "7860"]
    (port,) = (value for name, value in steps if name == "EXPOSE")
    assert port == command[-1]
    (check,) = (value for name, value in steps if name == "HEALTHCHECK")
    probe = json.loads(check[check.index("CMD") + 3 :])
    compile(probe[2], "probe", "exec")
    assert probe[:2] == ["python", "-c"] and f"127.0.0.1:{port}/gradio_api/app_id" in probe[2]


def test_the_container_writes_to_tmp_only_and_keeps_no_cache():
    (environment,) = (
        dict(v.split("=") for v in value.split()) for name, value in instructions() if name == "ENV"
    )
    assert all(environment[name].startswith("/tmp") for name in ("HOME", "HF_HOME", "GRADIO_TEMP_DIR"))
    assert environment["GRADIO_ANALYTICS_ENABLED"] == "False"
    (install,) = (value for name, value in instructions() if name == "RUN" and "pip" in value)
    assert install == "pip install --no-cache-dir -r requirements.txt"


def test_everything_that_is_copied_exists_and_reaches_the_build():
    copied = [path for name, value in instructions() if name == "COPY" for path in value.split()[:-1]]
    assert {"app.py", "app", "mmdiff", "checkpoints", "docs", "README.md", "requirements.txt"} == set(copied)
    assert all((ROOT / path).exists() for path in copied)
    rules = [r for r in (ROOT / ".dockerignore").read_text().splitlines() if r and not r.startswith("#")]
    assert rules[0] == "*" and {rule[1:] for rule in rules if rule.startswith("!")} == set(copied)
    excluded = [rule for rule in rules[1:] if not rule.startswith("!")]
    needed = [*ROOT.glob("app/**/*"), *ROOT.glob("mmdiff/**/*.py"), *ROOT.glob("checkpoints/*/*")]
    needed += ROOT.glob("docs/*.md")
    for path in needed:
        name = path.relative_to(ROOT).as_posix()
        lost = any(fnmatch.fnmatch(name, rule.removeprefix("**/")) for rule in excluded)
        assert not lost or "__pycache__" in name


def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="not a git checkout")
def test_large_files_are_binary_and_stay_in_a_plain_clone():
    tracked = [ROOT / name for name in git("ls-files", "-z").split("\0") if name]
    large = [path for path in tracked if path.is_file() and path.stat().st_size > LARGE]
    assert large  # otherwise there would be nothing to look after
    for path in large:
        found = git("check-attr", "text", "diff", "merge", "filter", "--", str(path.relative_to(ROOT)))
        values = dict(line.rsplit(": ", 2)[1:] for line in found.splitlines())
        # with filter=lfs these ordinary files would count as changed in a clone made with git-lfs
        assert values == {"text": "unset", "diff": "unset", "merge": "unset", "filter": "unspecified"}
        assert not path.read_bytes()[:40].startswith(b"version https://git-lfs")


def test_the_page_on_hosting_names_what_there_is():
    text = (ROOT / "docs/hosting.md").read_text(encoding="utf-8")
    proxy = re.search(r"```nginx\n(.*?)```", text, re.DOTALL)[1]
    size = re.search(r'max_file_size="(\d+)mb"', (ROOT / "app/ui.py").read_text())[1]
    assert f"client_max_body_size {size}m;" in proxy
    assert "proxy_buffering off;" in proxy and "GRADIO_ROOT_PATH=/mmdiff" in text
    assert proxy.count("{") == proxy.count("}") == 1


@pytest.fixture
def zero_gpu(monkeypatch):
    """A function that imports app.run.zero_gpu anew, with or without `spaces` and the variable of ZeroGPU."""

    def load(variable=None, installed=True):
        spaces = types.ModuleType("spaces")
        spaces.__spec__ = importlib.machinery.ModuleSpec("spaces", None)
        spaces.GPU = fake_gpu
        monkeypatch.setitem(sys.modules, "spaces", spaces)
        if not installed:
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
        if variable is not None:
            monkeypatch.setenv("SPACES_ZERO_GPU", variable)
        monkeypatch.delitem(sys.modules, "app.run.zero_gpu", raising=False)
        return importlib.import_module("app.run.zero_gpu")

    before = sys.modules.get("app.run.zero_gpu")
    yield load
    if before is not None:
        sys.modules["app.run.zero_gpu"] = before
        sys.modules["app"].zero_gpu = before


def fake_gpu(task=None, *, duration=None, size=None):
    """Like `spaces.GPU`: a generator that asks for the GPU when it is first advanced, then runs the task."""
    assert task is None

    def decorate(function):
        assert inspect.isgeneratorfunction(function)

        def wrapper(*args, **kwargs):
            wrapper.asked.append(duration(*args, **kwargs))
            yield from function(*args, **kwargs)

        wrapper.asked = []
        return wrapper

    return decorate


def steps(count, seconds=0.5):
    yield from range(count)


@pytest.mark.parametrize(
    ("variable", "installed", "on"),
    [
        (None, True, False),
        ("", True, False),
        ("false", True, False),
        ("true", False, False),
        ("true", True, True),
    ],
)
def test_zero_gpu_is_recognised(zero_gpu, variable, installed, on):
    module = zero_gpu(variable, installed)
    assert module.ON_ZERO_GPU is on
    marked = module.gpu(lambda count: count)(steps)
    assert (marked is not steps) is on
    assert list(marked(3)) == [0, 1, 2]


def test_the_duration_follows_the_arguments(zero_gpu):
    module = zero_gpu("1")
    marked = module.gpu(lambda count, seconds=0.5: count * seconds)(steps)
    assert list(marked(5)) == list(range(5)) and list(marked(3, seconds=2.0)) == [0, 1, 2]
    assert list(marked(0)) == [] and len(list(marked(100, 60.0))) == 100
    assert marked.asked == [3, 6, 1, module.MAX_SECONDS]
    assert all(isinstance(seconds, int) for seconds in marked.asked)  # a `spaces.GPU` takes whole seconds


def test_spaces_comes_before_torch():
    """`spaces` must be there first; the module itself must not bring torch in."""
    code = (
        "import importlib.machinery, sys, types\n"
        "class Spaces(types.ModuleType):\n"
        "    pass\n"
        "fake = Spaces('spaces'); fake.__spec__ = importlib.machinery.ModuleSpec('spaces', None)\n"
        "sys.modules['spaces'] = fake\n"
        "import app.run.zero_gpu\n"
        "assert app.run.zero_gpu.ON_ZERO_GPU and app.run.zero_gpu.spaces is fake\n"
        "assert not {'torch', 'gradio', 'mmdiff'} & set(sys.modules)\n"
    )
    environment = {"SPACES_ZERO_GPU": "true", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    script = (ROOT / "app.py").read_text()
    places = [script.index(f"{how} app.{name}") for how, name in (("import", "run.zero_gpu"), ("from", "ui"))]
    assert places == sorted(places)


def test_a_service_starts_on_zero_gpu_without_asking_for_a_gpu():
    """At startup there is no visitor to lend it to; a run of a visitor then asks, once, for enough time."""
    code = (
        "import importlib.machinery, sys, types\n"
        "fake = types.ModuleType('spaces'); fake.__spec__ = importlib.machinery.ModuleSpec('spaces', None)\n"
        "asked = []\n"
        "def GPU(duration):\n"
        "    def decorate(function):\n"
        "        def run(*args):\n"
        "            asked.append(duration(*args)); yield from function(*args)\n"
        "        return run\n"
        "    return decorate\n"
        "fake.GPU = GPU; sys.modules['spaces'] = fake\n"
        "import app.run.zero_gpu\n"
        "from fakes import FakePipeline\n"
        "from mmdiff.request import Request\n"
        "from app.run.service import Service\n"
        "service = Service(FakePipeline(64), 'toy')\n"
        "assert not asked, asked\n"
        "service.run(Request(wanted=('image',), steps=3))\n"
        "assert len(asked) == 1 and 1 <= asked[0] <= app.run.zero_gpu.MAX_SECONDS, asked\n"
    )
    environment = {"SPACES_ZERO_GPU": "true", "PATH": "", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
