"""How a downloaded file is verified against what the store says about it.

An S3 ETag is the MD5 of the object for a single PUT, and `MD5(concatenated part MD5s)-N` for a multipart upload
of N parts. Where the part size is known, part digests are taken while bytes stream in; else the file is read back.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

MIB = 2**20
_READ_BYTES = 4 * MIB
_USUAL_PART_SIZES = tuple(m * MIB for m in (8, 5, 16, 10, 15, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024))
"""Defaults of aws-cli, SDKs, s5cmd, rclone, tosutil and their like, the most usual first."""

Algorithm = Literal["sha256", "sha1", "crc32"]


class Mismatch(Exception):
    """The bytes are not the source's."""


class Check(Protocol):
    @property
    def segment(self) -> int | None:
        """Bytes per MD5 taken while downloading, from the file's beginning; None: none is taken."""

    def verify(self, path: Path, segments: Sequence[bytes]) -> str:
        """What was compared, for the manifest. Raises `Mismatch`. `segments`: the MD5s in file order."""


@dataclass(frozen=True, slots=True)
class PartsMD5:
    """Multipart upload of known part size."""

    etag: str
    segment: int | None

    def verify(self, path: Path, segments: Sequence[bytes]) -> str:
        if multipart_etag(segments) != self.etag:
            raise Mismatch
        return "md5-multipart"


@dataclass(frozen=True, slots=True)
class ReadBackParts:
    """Multipart upload whose part size is one of `candidates`, or perhaps none of them where it was `guessed`."""

    etag: str
    candidates: tuple[int, ...]
    guessed: bool
    segment: int | None = None

    def verify(self, path: Path, segments: Sequence[bytes]) -> str:
        for part_size in self.candidates:
            if multipart_etag(segment_md5s(path, 0, path.stat().st_size, part_size)) == self.etag:
                return "md5-multipart"
        if not self.guessed:
            raise Mismatch
        return "size (part size of the upload is unknown)"


@dataclass(frozen=True, slots=True)
class WholeFile:
    """One digest (hex) over the whole object."""

    algorithm: Literal["md5"] | Algorithm
    expected: str
    segment: int | None = None

    def verify(self, path: Path, segments: Sequence[bytes]) -> str:
        if file_digest(path, self.algorithm) != self.expected:
            raise Mismatch
        return self.algorithm


@dataclass(frozen=True, slots=True)
class SizeOnly:
    """Nothing to compare with but the size. Digests are still taken, so that resuming trusts no stale disk."""

    why: str
    segment: int | None = None

    def verify(self, path: Path, segments: Sequence[bytes]) -> str:
        return f"size ({self.why})"


def choose_check(
    *,
    size: int,
    etag: str,
    part_size: int | None,
    stored: Mapping[Algorithm, str],
    etag_is_md5: bool,
    stream_limit: int,
) -> Check:
    """The strongest check the store's answers allow.

    `part_size` is that of the upload, None when the store does not tell; `stored` maps algorithms to base64 digests
    of the whole object. Upload parts above `stream_limit` bytes are read back: they must not dictate request sizes.
    """
    if etag_is_md5 and re.fullmatch(r"[0-9a-f]{32}", etag):
        return WholeFile("md5", etag)
    for algorithm, value in stored.items():
        return WholeFile(algorithm, base64.b64decode(value).hex())
    parts = re.fullmatch(r"[0-9a-f]{32}-(\d+)", etag)
    if not etag_is_md5 or parts is None:
        return SizeOnly("the store keeps no checksum of it", segment=stream_limit)
    count = int(parts[1])
    if part_size is not None and -(-size // part_size) == count:
        if part_size <= stream_limit:
            return PartsMD5(etag, part_size)
        return ReadBackParts(etag, (part_size,), guessed=False)
    return ReadBackParts(etag, tuple(s for s in _USUAL_PART_SIZES if -(-size // s) == count), guessed=True)


def multipart_etag(part_md5s: Sequence[bytes]) -> str:
    return f"{hashlib.md5(b''.join(part_md5s), usedforsecurity=False).hexdigest()}-{len(part_md5s)}"


def segment_md5s(path: Path, start: int, length: int, segment: int) -> list[bytes]:
    """MD5s of the file's bytes [start, start + length), cut every `segment` bytes."""
    hasher = SegmentHasher(segment)
    for chunk in _read(path, start, length):
        hasher.update(chunk)
    return hasher.finish()


def file_digest(path: Path, algorithm: Literal["md5"] | Algorithm) -> str:
    """Hex digest of a whole file."""
    if algorithm == "crc32":
        crc = 0
        for chunk in _read(path, 0, path.stat().st_size):
            crc = zlib.crc32(chunk, crc)
        return f"{crc:08x}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


class SegmentHasher:
    """MD5 per `segment` bytes of a stream; None takes none."""

    def __init__(self, segment: int | None) -> None:
        self._segment = segment
        self._done: list[bytes] = []
        self._filled = 0
        self._hash = hashlib.md5(usedforsecurity=False)

    def update(self, data: memoryview) -> None:
        if self._segment is None:
            return
        while data:
            head = data[: self._segment - self._filled]
            self._hash.update(head)
            self._filled += len(head)
            data = data[len(head) :]
            if self._filled == self._segment:
                self._close()

    def finish(self) -> list[bytes]:
        if self._filled:
            self._close()
        return self._done

    def _close(self) -> None:
        self._done.append(self._hash.digest())
        self._hash = hashlib.md5(usedforsecurity=False)
        self._filled = 0


def _read(path: Path, start: int, length: int) -> Iterable[memoryview]:
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while length and (count := file.readinto(buffer[: min(length, len(buffer))])):
            yield buffer[:count]
            length -= count
