"""A folder for this process's sockets and keys, which goes with the process, however that ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tandem_runtime.core.errors import StartupError

PREFIX = "tandem-run-"
LONGEST_PATH = 90
"""Sockets in it must have a path of at most 107 bytes (sun_path)."""


class PrivateFolder:
    """Mode 0700, in $TMPDIR. Its owner holds a lock on it (flock), which the kernel drops when the owner is killed; the
    next one to be made removes those without. Process ids would not do: they are reused, and containers that share a
    folder count them apart."""

    def __init__(self) -> None:
        """Raises `StartupError`."""
        try:
            root = Path(tempfile.gettempdir())
            _sweep(root)
            self.path, self._lock = _make(root)
        except OSError as error:
            raise StartupError(f"no folder for sockets can be made: {error}; set TMPDIR to a writable one") from error
        if len(os.fsencode(self.path)) > LONGEST_PATH:
            self.close()
            raise StartupError(f"the path of {root} is too long for sockets; set TMPDIR to a shorter one")

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _make(root: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        # Until it is locked, it looks to another process as if its owner had been killed.
        with suppress(FileNotFoundError):
            lock = _open(path)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return path, lock
            os.close(lock)


def _sweep(root: Path) -> None:
    for path in root.glob(PREFIX + "*"):
        try:
            lock = _open(path)
        except OSError:
            continue  # another user's, or gone
        try:
            if os.fstat(lock).st_uid == os.geteuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(lock)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
