"""What a destination holds: the completion marker, and its unfinished form that a later run resumes from."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tandem_contract import fetch_flags

from tandem_fetch import atomic
from tandem_fetch.errors import UnsafeKey
from tandem_fetch.keys import CONTROL_FOLDER, relative_path
from tandem_fetch.source import RemoteFile


@dataclass(frozen=True, slots=True)
class Entry:
    path: str
    size: int
    etag: str
    verified: str
    """What was compared: md5, md5-multipart, sha256, size (...)."""

    def is_copy_of(self, file: RemoteFile) -> bool:
        return (self.path, self.size, self.etag) == (file.path, file.size, file.etag)

    def is_intact(self, folder: Path) -> bool:
        try:
            return (folder / self.path).stat().st_size == self.size
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Manifest:
    uri: str
    revision: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    files: tuple[Entry, ...]
    """Sorted by path."""

    @classmethod
    def of(
        cls, uri: str, revision: str | None, include: Iterable[str], exclude: Iterable[str], files: Iterable[Entry]
    ) -> Manifest:
        return cls(uri, revision, tuple(include), tuple(exclude), tuple(sorted(files, key=lambda entry: entry.path)))

    def with_entry(self, entry: Entry) -> Manifest:
        return Manifest.of(self.uri, self.revision, self.include, self.exclude, (*self.files, entry))

    def is_intact(self, folder: Path) -> bool:
        """Every file is there with its size. Content was verified when it was written."""
        return bool(self.files) and all(entry.is_intact(folder) for entry in self.files)

    def has_same_source(self, other: Manifest) -> bool:
        return (self.uri, self.revision, self.include, self.exclude) == (
            other.uri, other.revision, other.include, other.exclude,
        )  # fmt: skip


class ManifestStore:
    """The two manifest files of one destination; at most one exists outside of a crash."""

    def __init__(self, folder: Path) -> None:
        self._complete = folder / fetch_flags.MANIFEST
        self._unfinished = folder / CONTROL_FOLDER / "manifest.unfinished.json"

    def complete(self) -> Manifest | None:
        return _load(self._complete)

    def last(self) -> Manifest | None:
        """The complete manifest, else what an interrupted run had finished."""
        return _load(self._complete) or _load(self._unfinished)

    def save_unfinished(self, manifest: Manifest) -> None:
        """From here on the destination is not complete, whatever happens."""
        _save(self._unfinished, manifest)
        self._complete.unlink(missing_ok=True)

    def save_complete(self, manifest: Manifest) -> None:
        _save(self._complete, manifest)
        self._unfinished.unlink(missing_ok=True)


def _save(path: Path, manifest: Manifest) -> None:
    atomic.write_text(path, json.dumps(asdict(manifest), indent=1) + "\n")


def _load(path: Path) -> Manifest | None:
    """None where there is none, or one that this version does not understand."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        entries = [Entry(**entry) for entry in raw["files"]]
        for entry in entries:
            relative_path(entry.path, "")  # a shared volume is other people's input, too
        return Manifest.of(raw["uri"], raw["revision"], raw["include"], raw["exclude"], entries)
    except (FileNotFoundError, UnsafeKey, ValueError, KeyError, TypeError):
        return None
