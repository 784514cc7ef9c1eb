"""Where a folder comes from, as `fetch` sees it: something that lists files and brings them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from tandem_fetch.manifest import Entry
from tandem_fetch.source import RemoteFile


class Origin(Protocol):
    """Both methods retry by themselves and raise `FetchError`."""

    @property
    def uri(self) -> str: ...

    def list_files(self) -> list[RemoteFile]: ...

    def bring(
        self,
        files: Sequence[RemoteFile],
        folder: Path,
        staging: Path,
        *,
        on_file: Callable[[Entry], None],
        report: Callable[[str], None],
    ) -> None:
        """Puts `files` into `folder`, each under its final name only when verified, and tells `on_file` of each.

        `staging`: a folder on the same file system for what is unfinished; it survives a failure.
        """
