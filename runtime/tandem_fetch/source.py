"""What the downloader needs of an object store, and the values that cross that line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tandem_fetch.checks import Check


@dataclass(frozen=True, slots=True)
class RemoteFile:
    path: str
    """Relative to the destination, `/`-separated, checked by `keys.relative_path`."""
    key: str
    size: int
    etag: str
    """Opaque version of the content, without quotes; equal etags mean equal bytes."""


ReadInto = Callable[[memoryview], int]
"""Fills the beginning of the buffer; bytes read, 0 at the end."""


class Source(Protocol):
    """A prefix of an object store. Thread-safe. Every method raises `FetchError` and nothing else of the network."""

    uri: str

    def list_files(self) -> list[RemoteFile]:
        """All objects under the prefix. Raises `NotFound` when there is none."""

    def find_check(self, file: RemoteFile) -> Check:
        """How the downloaded file, of at least one byte, can be verified; may ask the server."""

    def open_range(self, file: RemoteFile, start: int, length: int) -> AbstractContextManager[ReadInto]:
        """Bytes [start, start + length) of exactly `file.etag`; raises `SourceChanged` when it is another by now."""
