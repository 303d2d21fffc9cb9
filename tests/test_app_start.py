"""Start and end of the server: clear lines before models load, odd neighbours, nothing left on the disk."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import FakePipeline
from synthetic import lively_model, tiny_config

from app.run import address, temporary
from app.run.checkpoints import load_all
from app.run.service import Service
from app.ui import build_demo, routes_of
from benchmarks.serving import API, Client, Server, free_port
from mmdiff.checkpoint import resolve, save_checkpoint

ROOT = Path(__file__).parents[1]
ODD_NAMES = (
    "run 2",
    "modèle",
    "it's",
    "config",
    "模型",
    "assets",
    "a/b?#",
    "<b>",
    "run-2",
    ".",
    "gradio_api",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(lively_model(tiny_config(embedder="")), folder)
    return folder


def run_app(*arguments, **options):
    command = [sys.executable, str(ROOT / "app.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


# -- before the models load ----------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["99999", "0", "-1", "abc", "7860.5", "", "²"])
def test_a_port_that_is_none_is_explained(checkpoint, port):
    done = run_app("--checkpoint", checkpoint, f"--port={port}")
    assert done.returncode == 2 and "give a number from 1 to 65535" in done.stderr


def test_an_address_where_nothing_can_listen_is_explained_in_one_line(checkpoint):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        busy = run_app("--checkpoint", checkpoint, "--port", port)
    nowhere = run_app("--checkpoint", checkpoint, "--host", "host.invalid")
    for done, words in ((busy, f"127.0.0.1 port {port}: Address already in use"), (nowhere, "host.invalid")):
        assert done.returncode == 1 and words in done.stderr and "--port" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_ipv6_addresses_are_in_brackets_where_pages_have_them():
    assert [address.in_url(host) for host in ("::1", "[::1]", "127.0.0.1", "localhost")] == [
        "[::1]", "[::1]", "127.0.0.1", "localhost",
    ]  # fmt: skip


def test_a_temporary_folder_that_cannot_be_written_is_explained_in_one_line(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path / "file" / "folder")}
    # the usual port may be another server's
    done = run_app("--checkpoint", checkpoint, "--port", free_port(), env=environment)
    assert done.returncode == 1 and "cannot be stored" in done.stderr and "GRADIO_TEMP_DIR" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_from_elsewhere_the_shipped_checkpoints_are_found(tmp_path):
    code = f"""
import runpy, sys
sys.argv = ["app.py"]
app = runpy.run_path({str(ROOT / "app.py")!r}, run_name="not main")
print(app["parse_arguments"]().checkpoint)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(ROOT / "checkpoints/orchard")


def test_a_folder_that_is_not_there_is_said_to_be_missing_before_the_hub_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match="no checkpoint folder at checkpoints/butterflies"):
        resolve("checkpoints/butterflies")


# -- neighbours ----------------------------------------------------------------------------------------


def test_every_name_of_a_neighbour_has_a_page(checkpoint):
    routes = routes_of(["orchard", *ODD_NAMES])
    assert routes["orchard"] == "" and len(set(routes.values())) == len(routes)
    assert routes["run 2"] != routes["run-2"] == "run-2"
    demo = build_demo([Service(FakePipeline(16), name) for name in ("orchard", *ODD_NAMES)])
    assert [(page[0], page[1]) for page in demo.pages[1:]] == [(routes[name], name) for name in ODD_NAMES]


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, RecursionError, KeyError, TypeError])
def test_a_neighbour_that_cannot_be_loaded_is_left_out_with_a_line(checkpoint, monkeypatch, caplog, error):
    shutil.copytree(checkpoint, checkpoint.parent / "bad", dirs_exist_ok=True)
    (checkpoint.parent / "deep").mkdir(exist_ok=True)
    (checkpoint.parent / "deep" / "config.json").write_text('{"a":' * 100_000)
    loaded = Service.from_checkpoint

    def load(folder, **options):
        if Path(folder).name == "bad":
            raise error("too\nlarge")
        return loaded(folder, **options)

    monkeypatch.setattr(Service, "from_checkpoint", load)
    assert [service.name for service in load_all(checkpoint, "cpu")] == ["tiny"]
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("'bad' is left out: ") and "\n" not in line for line in lines)
    assert any(line.startswith("'deep' is left out: ") for line in lines)


# -- temporary files -----------------------------------------------------------------------------------


@pytest.fixture
def claimed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    folder = temporary.claim()
    yield folder
    folder.delete()


def test_gradio_and_tempfile_write_into_the_folder_and_nothing_of_it_is_left(claimed, tmp_path):
    import tempfile

    from gradio.utils import get_upload_folder

    assert get_upload_folder() == tempfile.gettempdir() == str(claimed.path)
    assert claimed.path.stat().st_mode & 0o777 == 0o700
    (claimed.path / "a").mkdir()
    (claimed.path / "a/b.png").write_bytes(b"x")
    claimed.delete()
    assert list(tmp_path.iterdir()) == []


def test_what_killed_processes_left_is_swept_and_nothing_else(claimed, tmp_path):
    dead = tmp_path / f"{temporary.PREFIX}{'0' * 32}"
    (dead / "a").mkdir(parents=True)
    (dead / "a/private.png").write_bytes(b"x")
    dead.with_suffix(".lock").touch()
    others = [tmp_path / name for name in ("others", "mmdiff-tests-x", f"{temporary.PREFIX}x", "1" * 32)]
    others.append(tmp_path / f"{temporary.PREFIX}{'1' * 32}")  # without a lock file
    for other in others:
        other.mkdir()
    code = (
        "import sys; from app.run import temporary; f = temporary.claim(); print(f.path, flush=True); input()"
    )
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as alive:
        path = Path(alive.stdout.readline().strip())
        assert path.is_dir() and not dead.exists() and not dead.with_suffix(".lock").exists()
        temporary.sweep(tmp_path)
        assert path.is_dir() and claimed.path.is_dir() and all(other.is_dir() for other in others)
        alive.kill()
        alive.wait()
        temporary.sweep(tmp_path)
        assert not path.exists() and not path.with_suffix(".lock").exists() and claimed.path.is_dir()


def test_the_oldest_files_give_way(claimed):
    now = time.time()
    for k in range(10):
        (claimed.path / str(k)).mkdir()
        file = claimed.path / str(k) / "file"
        file.write_bytes(b"x" * 100)
        os.utime(file, (now + k, now + k))
    claimed.tidy(max_bytes=550, max_files=100)
    assert {path.parent.name for path in claimed.path.rglob("file")} == set("56789")
    claimed.tidy(max_bytes=0)  # within the same second nothing is looked at again
    assert len(list(claimed.path.rglob("file"))) == 5
    claimed._tidied = -1e9
    claimed.tidy(max_files=2)
    assert {path.parent.name for path in claimed.path.rglob("file")} == set("89")


# -- the process ---------------------------------------------------------------------------------------


def used(server):
    """Something was uploaded to the server, and something made by it."""
    client = Client(server.address)
    assert client.upload("private.png", b"secret")
    assert client.call("generate", [None] * 6 + [["image"], 2]).ok
    return client


def files(server):
    return [path for path in server.folder.rglob("*") if path.is_file()]


def test_sigterm_ends_it_soon_and_deletes_what_visitors_left_even_in_the_middle_of_a_run(
    checkpoint, tmp_path
):
    server = Server(str(checkpoint), tmp_path, "--host", "127.0.0.1")
    try:
        server.wait()
        client = used(server)
        joined = client.send(f"{API}/call/generate", {"data": [None] * 7 + [100, None, 8]})
        lines = client.lines(f"{API}/call/generate/{json.loads(joined.body)['event_id']}")
        assert len(files(server)) >= 2
        assert server.end(signal.SIGTERM) < 5 and server.process.returncode == 0
        assert not files(server)
        lines.close()
    finally:
        server.end(signal.SIGKILL)


def test_after_kill_9_the_next_start_deletes_what_was_left(checkpoint, tmp_path):
    first = Server(str(checkpoint), tmp_path)
    try:
        first.wait()
        used(first)
    finally:
        first.end(signal.SIGKILL)
    left = set(files(first))
    assert any(path.name == "private.png" for path in left)
    (tmp_path / "log").unlink()
    second = Server(str(checkpoint), tmp_path, "--host", "::1")
    try:
        second.wait()
        assert "open http://[::1]:" in second.log()
        assert not left & set(files(second))
        second.address = second.address.replace("127.0.0.1", "[::1]")
        used(second)
    finally:
        second.end(signal.SIGINT)
    assert second.process.returncode == 0 and not files(second)
