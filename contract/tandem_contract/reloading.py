"""A small file whose parsed content follows the file: API keys, ticket keys, service-account tokens."""

from __future__ import annotations

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
        self._value = parse(self._path.read_text(encoding="utf-8"))

    def get(self) -> Value:
        identity = self._stat()
        if identity != self._identity:
            self._identity = identity
            try:
                self._value = self._parse(self._path.read_text(encoding="utf-8"))
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
