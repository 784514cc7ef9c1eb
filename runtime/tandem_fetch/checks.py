"""How a downloaded file is verified against what the store says about it.

An S3 ETag is the MD5 of the object for a single PUT, and `MD5(concatenated part MD5s)-N` for a multipart upload of N
parts. Part MD5s are taken while bytes stream in; where the part size turns out to be another, the file is read back.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tandem_fetch.digests import Algorithm, Segments, file_digest

MIB = 2**20
_USUAL_PART_SIZES = tuple(m * MIB for m in (8, 5, 16, 10, 15, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024))
"""Defaults of aws-cli, SDKs, s5cmd, rclone, tosutil and their like, the most usual first."""

Stored = Literal["sha256", "sha1", "crc32"]
"""Checksums that stores may keep beside the ETag."""


class Mismatch(Exception):
    """The bytes are not the source's."""


class Check(Protocol):
    @property
    def streamed(self) -> Segments | None:
        """What is digested while downloading; None: nothing."""

    def verify(self, path: Path, digests: Sequence[bytes]) -> str:
        """What was compared, for the manifest. Raises `Mismatch`. `digests`: those of `streamed`, in file order."""


@dataclass(frozen=True, slots=True)
class MultipartMD5:
    """Multipart upload whose part size is one of `candidates`, or perhaps none of them where it was `guessed`."""

    etag: str
    candidates: tuple[int, ...]
    guessed: bool
    streamed: Segments | None

    def verify(self, path: Path, digests: Sequence[bytes]) -> str:
        for part_size in self.candidates:
            parts = Segments(part_size, "md5")
            md5s = digests if parts == self.streamed else parts.of_file(path, 0, path.stat().st_size)
            if multipart_etag(md5s) == self.etag:
                return "md5-multipart"
        if not self.guessed:
            raise Mismatch
        return "size (part size of the upload is unknown)"


@dataclass(frozen=True, slots=True)
class WholeFile:
    """One digest (hex) over the whole object, which is read back."""

    algorithm: Algorithm
    expected: str
    streamed: Segments | None = None

    def verify(self, path: Path, digests: Sequence[bytes]) -> str:
        if file_digest(path, self.algorithm) != self.expected:
            raise Mismatch
        return self.algorithm


@dataclass(frozen=True, slots=True)
class SizeOnly:
    """Nothing to compare with but the size. What is digested still keeps resuming from trusting a stale disk."""

    why: str
    streamed: Segments | None = None

    def verify(self, path: Path, digests: Sequence[bytes]) -> str:
        return f"size ({self.why})"


def choose_check(
    *,
    size: int,
    etag: str,
    part_size: int | None,
    stored: Mapping[Stored, str],
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
        return SizeOnly("the store keeps no checksum of it", Segments(stream_limit, "xxh3"))
    count = int(parts[1])
    known = part_size if part_size is not None and -(-size // part_size) == count else None
    candidates = (known,) if known else tuple(usual for usual in _USUAL_PART_SIZES if -(-size // usual) == count)
    streamed = None if known else Segments(stream_limit, "xxh3")
    if candidates and candidates[0] <= stream_limit:
        streamed = Segments(candidates[0], "md5")
    return MultipartMD5(etag, candidates, guessed=known is None, streamed=streamed)


def multipart_etag(part_md5s: Sequence[bytes]) -> str:
    return f"{hashlib.md5(b''.join(part_md5s), usedforsecurity=False).hexdigest()}-{len(part_md5s)}"
