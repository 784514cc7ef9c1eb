"""A file being downloaded: preallocated data plus a journal of finished parts, both gone once it is whole.

A part is journalled after its bytes were written. Neither is synced, so after a power loss the journal may know more
than the disk does: that is why resuming re-reads what it can (`transfer`) and the file is synced before it is renamed.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem_fetch import atomic, disk

WRITE_BYTES = 64 * 1024
"""Per call. Larger ones get larger pieces of page cache, which in a virtual machine are the pieces that the host took
back for being idle: the copy then waits for it at each page (1 MiB: two to three times the system time)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One ranged request: bytes [start, start + length)."""

    start: int
    length: int


def plan_parts(size: int, target: int, segment: int | None) -> list[Part]:
    """Cuts a file into parts of about `target` bytes that end on multiples of `segment` (and at the file's end)."""
    stride = target if segment is None else max(1, target // segment) * segment
    return [Part(start, min(stride, size - start)) for start in range(0, size, stride)]


class PartialFile:
    """Thread-safe for different parts. `identity` is what makes old parts usable: another one starts afresh."""

    def __init__(self, path: Path, *, size: int, identity: str) -> None:
        self.path = path
        self._journal = journal_path(path)
        self._header = {"size": size, "identity": identity}
        self._lock = threading.Lock()
        self._closed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._done = self._load() if path.exists() else {}
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o664)
        try:
            disk.preallocate(self._fd, size)
            self._rewrite_journal()
            self._journal_fd = os.open(self._journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except BaseException:
            os.close(self._fd)
            raise

    def finished(self, part: Part) -> list[bytes] | None:
        """The segment digests of a part that an earlier run journalled, None where there is none."""
        return self._done.get(part)

    def digests(self, parts: Sequence[Part]) -> list[bytes]:
        return [digest for part in parts for digest in self._done[part]]

    def write(self, offset: int, data: memoryview) -> None:
        while data:
            count = os.pwrite(self._fd, data[:WRITE_BYTES], offset)
            offset += count
            data = data[count:]

    def record(self, part: Part, digests: list[bytes]) -> None:
        with self._lock:
            self._done[part] = digests
            os.write(self._journal_fd, _line(part, digests))

    def close(self) -> None:
        """Idempotent."""
        if not self._closed:
            self._closed = True
            os.close(self._fd)
            os.close(self._journal_fd)

    def publish(self, target: Path) -> None:
        """Makes the whole file durable under its final name."""
        os.fsync(self._fd)
        self.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic.rename(self.path, target)
        self._journal.unlink()

    def discard(self) -> None:
        self.close()
        self.path.unlink()
        self._journal.unlink()

    def _load(self) -> dict[Part, list[bytes]]:
        try:
            lines = self._journal.read_bytes().split(b"\n")
            if json.loads(lines[0]) != self._header:
                return {}
        except (FileNotFoundError, ValueError):
            return {}
        done: dict[Part, list[bytes]] = {}
        try:
            for line in lines[1:-1]:  # what follows the last newline was torn by a kill
                raw = json.loads(line)
                done[Part(raw["start"], raw["length"])] = [bytes.fromhex(digest) for digest in raw["digests"]]
        except (ValueError, KeyError, TypeError):
            pass  # a power loss, or a full disk, can also tear a line amid others: what comes before it holds
        return done

    def _rewrite_journal(self) -> None:
        lines = [json.dumps(self._header), *(_line(p, m).decode().rstrip() for p, m in self._done.items())]
        atomic.write_text(self._journal, "\n".join(lines) + "\n")


def journal_path(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _line(part: Part, digests: list[bytes]) -> bytes:
    record = {"start": part.start, "length": part.length, "digests": [digest.hex() for digest in digests]}
    return json.dumps(record).encode() + b"\n"
