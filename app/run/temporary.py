"""The folder of this process for uploads, results and everything else that is written for a while.

`claim` makes it, first deletes those that killed processes have left behind, and has Gradio and `tempfile`
write into it; `Folder.tidy` keeps it small, and `Folder.delete` ends it. A lock file beside each folder is
held for as long as its process lives, whichever way that ends.
"""

import os
import shutil
import tempfile
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "mmdiff-page-"
VARIABLE = "GRADIO_TEMP_DIR"
MAX_BYTES, MAX_FILES = 512 * 2**20, 4000
EMPTY_SECONDS = 3600.0  # after which a folder without files has surely been left by its maker


def claim() -> "Folder":
    """The folder, inside that of the variable or of the system. Raises OSError if it cannot be written."""
    base = Path(os.environ.get(VARIABLE) or tempfile.gettempdir()).resolve()
    base.mkdir(parents=True, exist_ok=True)
    sweep(base)
    path = base / f"{PREFIX}{uuid.uuid4().hex}"
    lock = _lock(path)
    lock.acquire(timeout=0)  # before the folder is there, so that no other process takes it for left behind
    path.mkdir(mode=0o700)
    os.environ[VARIABLE] = tempfile.tempdir = str(path)
    return Folder(path, lock)


def sweep(base: Path) -> None:
    """Deletes the folders of ended processes in `base`: those that have a lock file, which nobody holds."""
    for lock in base.glob(f"{PREFIX}{'[0-9a-f]' * 32}.lock"):
        path = lock.with_suffix("")
        if path.is_dir() and not path.is_symlink():
            with suppress(Timeout, OSError), _lock(path).acquire(timeout=0):  # of another user, or in use
                _delete(path)


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_suffix(".lock"))


def _delete(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.with_suffix(".lock").unlink(missing_ok=True)


class Folder:
    """The claimed folder `path`."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path, self._lock = path, lock
        self._tidying, self._tidied = threading.Lock(), 0.0

    def tidy(self, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
        """Deletes the oldest files until both limits are kept; at most once a second."""
        if time.monotonic() - self._tidied < 1 or not self._tidying.acquire(blocking=False):
            return
        try:
            files = sorted(self._files(), key=lambda file: file[1].st_mtime, reverse=True)
            total = 0
            for count, (path, stat) in enumerate(files, 1):
                total += stat.st_size
                if total > max_bytes or count > max_files:
                    path.unlink(missing_ok=True)
        finally:
            self._tidied = time.monotonic()
            self._tidying.release()

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """Every file; folders that have been empty for long are deleted on the way."""
        files = []
        for folder, _, names in os.walk(self.path, topdown=False):
            with suppress(OSError):  # most are not empty
                if not names and time.time() - os.stat(folder).st_mtime > EMPTY_SECONDS:
                    os.rmdir(folder)
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):
                    files.append((path, path.stat()))
        return files

    def delete(self) -> None:
        """Deletes it with all that is in it."""
        _delete(self.path)
        self._lock.release()
