"""Digests of files: per segment, while the bytes stream in or from the disk, and of the whole."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import xxhash

_READ_BYTES = 1024 * 1024

Algorithm = Literal["md5", "sha1", "sha256", "crc32", "xxh3"]
"""What stores keep, and xxh3, which costs next to nothing and finds what a disk forgot."""


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> object: ...

    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: memoryview) -> None:
        self._crc = zlib.crc32(data, self._crc)

    def digest(self) -> bytes:
        return self._crc.to_bytes(4, "big")


_HASHES: dict[Algorithm, Callable[[], _Hash]] = {
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
    "crc32": _Crc32,
    "xxh3": xxhash.xxh3_64,
}


@dataclass(frozen=True, slots=True)
class Segments:
    """A file cut every `size` bytes, and how each piece is digested."""

    size: int
    algorithm: Algorithm

    def __str__(self) -> str:
        return f"{self.algorithm}/{self.size}"

    def of_file(self, path: Path, start: int, length: int) -> list[bytes]:
        """Digests of the bytes [start, start + length); `start` is a multiple of `size`."""
        hasher = SegmentHasher(self)
        for chunk in _read(path, start, length):
            hasher.update(chunk)
        return hasher.finish()


class SegmentHasher:
    """Digests a stream."""

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self._done: list[bytes] = []
        self._filled = 0
        self._hash = self._fresh()

    def update(self, data: memoryview) -> None:
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

    def _fresh(self) -> _Hash:
        return _HASHES[self._segments.algorithm]()


def digest(algorithm: Algorithm, chunks: Iterable[bytes | memoryview]) -> str:
    """Hex digest of all `chunks` together."""
    total = _HASHES[algorithm]()
    for chunk in chunks:
        total.update(memoryview(chunk))
    return total.digest().hex()


def file_digest(path: Path, algorithm: Algorithm) -> str:
    """Hex digest of a whole file."""
    return digest(algorithm, _read(path, 0, path.stat().st_size))


def _read(path: Path, start: int, length: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while length and (count := file.readinto(buffer[: min(length, len(buffer))])):
            yield buffer[:count]
            length -= count
