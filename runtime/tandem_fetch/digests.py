"""Digests of files: per segment, while the bytes stream in or from the disk, and of the whole."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import xxhash

_READ_BYTES = 1024 * 1024

Algorithm = Literal["md5", "sha256", "sha1", "crc32"]
_SEGMENT_HASHES: dict[str, Callable[[], Any]] = {
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "xxh3": xxhash.xxh3_64,
}


@dataclass(frozen=True, slots=True)
class Segments:
    """A file cut every `size` bytes, and how each piece is digested."""

    size: int
    algorithm: Literal["md5", "xxh3"]
    """md5 is what stores can be compared with; xxh3, at a fiftieth of its CPU time, only finds what a disk forgot."""

    def __str__(self) -> str:
        return f"{self.algorithm}/{self.size}"

    def of_file(self, path: Path, start: int, length: int) -> list[bytes]:
        """Digests of the bytes [start, start + length); `start` is a multiple of `size`."""
        hasher = SegmentHasher(self)
        for chunk in _read(path, start, length):
            hasher.update(chunk)
        return hasher.finish()


class SegmentHasher:
    """Digests a stream; None: not at all."""

    def __init__(self, segments: Segments | None) -> None:
        self._segments = segments
        self._done: list[bytes] = []
        self._filled = 0
        self._hash = self._fresh()

    def update(self, data: memoryview) -> None:
        if self._segments is None:
            return
        while data:
            head = data[: self._segments.size - self._filled]
            self._hash.update(head)
            self._filled += len(head)
            data = data[len(head) :]
            if self._filled == self._segments.size:
                self._close()

    def finish(self) -> list[bytes]:
        if self._filled:
            self._close()
        return self._done

    def _close(self) -> None:
        self._done.append(self._hash.digest())
        self._hash = self._fresh()
        self._filled = 0

    def _fresh(self) -> Any:
        return _SEGMENT_HASHES[self._segments.algorithm]() if self._segments else None


def file_digest(path: Path, algorithm: Algorithm) -> str:
    """Hex digest of a whole file."""
    if algorithm == "crc32":
        crc = 0
        for chunk in _read(path, 0, path.stat().st_size):
            crc = zlib.crc32(chunk, crc)
        return f"{crc:08x}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _read(path: Path, start: int, length: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while length and (count := file.readinto(buffer[: min(length, len(buffer))])):
            yield buffer[:count]
            length -= count
