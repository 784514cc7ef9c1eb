"""How far a download is: a bar on a terminal, else a line every few seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

from tandem_fetch.disk import gigabytes


class Progress:
    """`with Progress(...)`: counts from any thread, reports on a thread of its own."""

    def __init__(self, *, total: int, files: int, report: Callable[[str], None], interval_s: float) -> None:
        self._total = total
        self._files = files
        self._report = report
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._fetched = self._reused = self._files_done = 0
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._bar = tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._bar.close()

    def fetched(self, count: int) -> None:
        with self._lock:
            self._fetched += count
            self._bar.update(count)

    def reused(self, count: int) -> None:
        """Bytes that an earlier run had already fetched."""
        with self._lock:
            self._reused += count
            self._bar.update(count)

    def file_done(self) -> None:
        with self._lock:
            self._files_done += 1

    def line(self) -> str:
        with self._lock:
            return progress_line(
                fetched=self._fetched,
                reused=self._reused,
                total=self._total,
                files_done=self._files_done,
                files=self._files,
                seconds=time.monotonic() - self._began,
            )

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            with tqdm.external_write_mode(file=sys.stderr):
                self._report(self.line())


def progress_line(*, fetched: int, reused: int, total: int, files_done: int, files: int, seconds: float) -> str:
    """`12.30 of 65.50 GB (18 %), 3 of 17 files, 812 MB/s, 1:05 left`."""
    have = fetched + reused
    rate = fetched / seconds if seconds > 0 else 0.0
    left = f"{_clock((total - have) / rate)} left" if rate > 0 else "stalled"
    return (
        f"{have / 1e9:.2f} of {gigabytes(total)} ({100 * have // max(total, 1)} %), "
        f"{files_done} of {files} files, {rate / 1e6:.0f} MB/s, {left}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
