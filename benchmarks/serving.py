"""The demo as a process of its own, and a client of it that speaks plain HTTP: what visitors may do to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START_SECONDS = 300.0
API = "/gradio_api"


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        status: of HTTP, 0 if there was no answer. body: of the response. ok: whether it was a success.
        error: what is said of an error, None if nothing is.
    """

    status: int
    body: Any
    ok: bool
    error: str | None = None


class Client:
    """A visitor without a browser."""

    def __init__(self, address: str, seconds: float = 120.0) -> None:
        self.address, self.seconds = address.rstrip("/"), seconds
        self.session = uuid.uuid4().hex

    def send(self, path: str, body: Any = None, **options: Any) -> Answer:
        """A request; `body` is bytes or JSON values, `options` are the method and the headers."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | options.pop("headers", {})
        request = urllib.request.Request(self.address + path, data, headers, **options)
        try:
            with urllib.request.urlopen(request, timeout=self.seconds) as response:
                return Answer(response.status, response.read(), True)
        except urllib.error.HTTPError as error:
            body = error.read()
            return Answer(error.code, body, False, said(body))
        except (OSError, ValueError) as error:
            return Answer(0, b"", False, f"no answer: {type(error).__name__}")

    def upload(self, name: str, data: bytes) -> dict[str, Any] | None:
        """A file as endpoints take it; None if it is refused."""
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + f"\r\n--{edge}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        answer = self.send(f"{API}/upload", body, headers=headers)
        return file(json.loads(answer.body)[0]) if answer.ok else None

    def call(self, name: str, data: list[Any]) -> Answer:
        """A named endpoint, to its end."""
        joined = self.send(f"{API}/call/{name}", {"data": data})
        if not joined.ok:
            return joined
        return self._heard(f"{API}/call/{name}/{json.loads(joined.body)['event_id']}")

    def _heard(self, path: str) -> Answer:
        kind = ""
        for line in self.lines(path):
            kind = line.removeprefix("event: ") if line.startswith("event: ") else kind
            if line.startswith("data: ") and kind in ("complete", "error"):
                value = json.loads(line.removeprefix("data: "))
                said = value.get("error") if isinstance(value, dict) else value
                return Answer(200, value, kind == "complete", said if kind == "error" else None)
        return Answer(200, None, False, "the stream ended before the call")

    def event(self, index: int, data: list[Any], query: str = "") -> Answer:
        """An event of the page by its number, to its end."""
        session = uuid.uuid4().hex
        body = {"data": data, "fn_index": index, "session_hash": session}
        joined = self.send(f"{API}/queue/join{query}", body)
        if not joined.ok:
            return joined
        for line in self.lines(f"{API}/queue/data?session_hash={session}"):
            if not line.startswith("data: "):
                continue
            message = json.loads(line.removeprefix("data: "))
            if message["msg"] == "process_completed":
                output = message["output"] or {}
                return Answer(200, output, message["success"], output.get("error"))
        return Answer(200, None, False, "the stream ended before the event")

    def lines(self, path: str) -> Iterator[str]:
        """The lines of a stream, as they come."""
        with urllib.request.urlopen(self.address + path, timeout=self.seconds) as stream:
            for line in stream:
                yield line.decode().rstrip("\n")

    def config(self) -> dict[str, Any]:
        """The page's components and events."""
        return json.loads(self.send("/config").body)


def file(path: str) -> dict[str, Any]:
    """An uploaded file as an input."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def said(body: bytes) -> str | None:
    """What the body of a refusal says; None if that is nothing."""
    text = body.decode(errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        return text or None
    value = value.get("detail", value.get("error")) if isinstance(value, dict) else value
    return value if isinstance(value, str) or value is None else json.dumps(value)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Server:
    """`python app.py` on a free port.

    Attributes:
        process: of the server. address: of its page. folder: where all that it stores must be.
    """

    def __init__(self, checkpoint: str, folder: Path, *arguments: str) -> None:
        port = free_port()
        self.folder, self._log = folder / "files", folder / "log"
        command = [sys.executable, str(ROOT / "app.py"), "--checkpoint", checkpoint, "--port", str(port)]
        environment = os.environ | {"GRADIO_TEMP_DIR": str(self.folder)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log, env=environment)
        self.address = f"http://127.0.0.1:{port}"

    def wait(self) -> None:
        """Until it serves. Raises RuntimeError if it ends, or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while "open http" not in self.log():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"app.py does not serve: {self.log()[-500:]}")
            time.sleep(0.1)

    def log(self) -> str:
        """All that it has written."""
        return self._log.read_text(errors="replace")

    def end(self, how: int = signal.SIGTERM) -> float:
        """Ends it; the seconds that this took."""
        start = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(30)
        return time.monotonic() - start


@contextmanager
def served(checkpoint: str, *arguments: str) -> Iterator[Server]:
    """A server that is ended, and whose files are deleted, afterwards."""
    with tempfile.TemporaryDirectory(prefix="mmdiff-served-") as folder:
        server = Server(checkpoint, Path(folder), *arguments)
        try:
            server.wait()
            yield server
        finally:
            server.end(signal.SIGKILL)
