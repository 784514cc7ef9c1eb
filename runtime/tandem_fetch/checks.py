"""How a downloaded file is verified against what the store says about it.

An S3 ETag is the MD5 of the object for a single PUT, and `MD5(concatenated part MD5s)-N` for a multipart upload of N
parts; the checksums that newer clients leave beside it are built alike. Digests of parts are taken while bytes stream
in; where the part size turns out to be another, the file is read back.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tandem_fetch.digests import Algorithm, Segments, digest, file_digest

MIB = 2**20
_USUAL_PART_SIZES = tuple(m * MIB for m in (8, 5, 16, 10, 15, 20, 25, 32, 50, 64, 100, 128, 256, 512, 1024))
"""Defaults of aws-cli, SDKs, s5cmd, rclone, tosutil and their like, the most usual first."""


class Mismatch(Exception):
    """The bytes are not the source's."""


class Check(Protocol):
    @property
    def streamed(self) -> Segments | None:
        """What is digested while downloading; None: nothing."""

    def verify(self, path: Path, digests: Sequence[bytes]) -> str:
        """What was compared, for the manifest. Raises `Mismatch`. `digests`: those of `streamed`, in file order."""


@dataclass(frozen=True, slots=True)
class Composite:
    """Digest over digests of the upload's parts, whose size is one of `candidates`, or none where it was `guessed`."""

    algorithm: Algorithm
    expected: str
    """Hex digest, `-`, number of parts."""
    candidates: tuple[int, ...]
    guessed: bool
    streamed: Segments | None

    def verify(self, path: Path, digests: Sequence[bytes]) -> str:
        for part_size in self.candidates:
            parts = Segments(part_size, self.algorithm)
            found = digests if parts == self.streamed else parts.of_file(path, 0, path.stat().st_size)
            if composite(self.algorithm, found) == self.expected:
                return f"{self.algorithm}-multipart"
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


AS_ASKED = SizeOnly("as --verify asks").verify(Path(), [])
"""What the manifest says of a file whose checksum nobody wanted."""


@dataclass(frozen=True, slots=True)
class Empty:
    """An object without bytes; stores disagree about parts of one that was uploaded in parts."""

    streamed: Segments | None = None

    def verify(self, path: Path, digests: Sequence[bytes]) -> str:
        return "empty"


def choose_check(
    *,
    size: int,
    etag: str,
    part_size: int | None,
    stored: Mapping[Algorithm, str],
    etag_is_md5: bool,
    stream_limit: int,
) -> Check:
    """The first of `stored`, then the ETag, that can be compared with.

    `size` is above 0. `part_size` is that of the upload, None when the store does not tell; `stored` maps algorithms
    to what S3 answers: the base64 digest of the whole object, or of its parts' digests and `-N`. Upload parts above
    `stream_limit` bytes are read back: they must not dictate request sizes.
    """
    known = {algorithm: _hex(value) for algorithm, value in stored.items()}
    if etag_is_md5:
        known.setdefault("md5", etag)
    for algorithm, expected in known.items():
        length = len(digest(algorithm, ()))
        if re.fullmatch(rf"[0-9a-f]{{{length}}}", expected):
            return WholeFile(algorithm, expected)
        if parts := re.fullmatch(rf"[0-9a-f]{{{length}}}-(\d+)", expected):
            return _composite_check(algorithm, expected, int(parts[1]), size, part_size, stream_limit)
    return SizeOnly("the store keeps no checksum of it", Segments(stream_limit, "xxh3"))


def composite(algorithm: Algorithm, part_digests: Sequence[bytes]) -> str:
    return f"{digest(algorithm, part_digests)}-{len(part_digests)}"


def _composite_check(
    algorithm: Algorithm, expected: str, count: int, size: int, part_size: int | None, stream_limit: int
) -> Composite:
    if count == 1:
        part_size = size
    known = part_size if part_size and -(-size // part_size) == count else None
    candidates = (known,) if known else tuple(usual for usual in _USUAL_PART_SIZES if -(-size // usual) == count)
    streamed = None if known else Segments(stream_limit, "xxh3")
    if candidates and candidates[0] <= stream_limit:
        streamed = Segments(candidates[0], algorithm)
    return Composite(algorithm, expected, candidates, guessed=known is None, streamed=streamed)


def _hex(stored: str) -> str:
    """Like an ETag; what is no base64 stays what it is, and is not understood."""
    encoded, dash, count = stored.partition("-")
    try:
        return base64.b64decode(encoded, validate=True).hex() + dash + count
    except ValueError:
        return stored
