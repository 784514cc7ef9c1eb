"""A small file whose parsed content follows the file: API keys, ticket keys, service-account tokens."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")
log = logging.getLogger(__name__)


class ReloadingFile(Generic[Value]):
    """Parses again when the file changes; a change that cannot be read or parsed keeps the last good value.

    Kubernetes swaps a mounted Secret by symlink, so identity is (inode, mtime, size) of what the path leads to.
    """

    def __init__(self, path: str, parse: Callable[[str], Value]) -> None:
        """Raises `OSError` or `ValueError` when there is no first good value."""
        self._path = Path(path)
        self._parse = parse
        self._identity = self._stat()
        self._value = parse(self._path.read_text())

    def get(self) -> Value:
        identity = self._stat()
        if identity != self._identity:
            self._identity = identity
            try:
                self._value = self._parse(self._path.read_text())
                log.info("reloaded %s", self._path)
            except (OSError, ValueError) as error:
                log.warning("keeping the last content of %s: %s", self._path, error)
        return self._value

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            stat = os.stat(self._path)
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size


class ApiKeys:
    """Keys as digests: the comparison takes the same time whichever key, and whatever length, is given."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def parse(cls, text: str) -> ApiKeys:
        """One key per non-empty line. Raises `ValueError` when there is none: an empty file must not open the door."""
        keys = [line.strip() for line in text.splitlines() if line.strip()]
        if not keys:
            raise ValueError("no API key found")
        return cls(keys)

    def accept(self, key: str) -> bool:
        given = _digest(key)
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
