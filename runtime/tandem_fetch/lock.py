"""One downloader per cache folder: an flock that dies with its holder, and says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from tandem_fetch.errors import Busy


class CacheLock:
    """`with CacheLock(...)`: waits until this process alone may write to the cache.

    `announce` receives a line when the wait begins and every `interval_s` after. Holders `publish` a line about
    themselves, which is what waiters show. The file stays: removing it would let two processes lock two inodes.
    """

    def __init__(
        self,
        path: Path,
        *,
        holder: str,
        announce: Callable[[str], None],
        interval_s: float,
        timeout_s: float | None = None,
        poll_s: float = 0.25,
    ) -> None:
        self._path = path
        self._holder = holder
        self._announce = announce
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._poll_s = poll_s
        self._fd = -1

    def __enter__(self) -> CacheLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            self._acquire()
        except BaseException:
            os.close(self._fd)
            raise
        self.publish("starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.ftruncate(self._fd, 0)
        os.close(self._fd)

    def publish(self, state: str) -> None:
        line = json.dumps({"holder": self._holder, "state": state}).encode()
        os.pwrite(self._fd, line.ljust(512), 0)

    def _acquire(self) -> None:
        began = announced = None
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                now = time.monotonic()
            began = now if began is None else began
            if self._timeout_s is not None and now - began > self._timeout_s:
                raise Busy(
                    f"{self._path.parent.parent} is still being filled by {self._other()}",
                    "wait for it or raise --lock-timeout",
                )
            if announced is None or now - announced >= self._interval_s:
                self._announce(f"waiting for {self._other()}")
                announced = now
            time.sleep(self._poll_s)

    def _other(self) -> str:
        try:
            about = json.loads(os.pread(self._fd, 512, 0))
            return f"{about['holder']} ({about['state']})"
        except (ValueError, KeyError, TypeError):
            return "another downloader"
