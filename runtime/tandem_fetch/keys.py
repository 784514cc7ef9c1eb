"""Object keys are other people's input: which become files, and where. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from tandem_fetch.errors import UnsafeKey

CONTROL_FOLDER = ".tandem"
"""Lock, manifest and partial files live here, inside the destination."""
_NAME_BYTES = 255 - len(".part.journal.new")
"""Of a file, which is staged under longer names."""
_REMEDY = "rename or remove the object"


def relative_path(key: str, prefix: str) -> str:
    """The file path, relative to the destination, of an object below `prefix`. Raises `UnsafeKey`."""
    path = key.removeprefix(prefix)
    problem = _problem(path)
    if problem is not None:
        raise UnsafeKey(f"object key {key!r} {problem}", _REMEDY)
    return path


def is_selected(path: str, include: Iterable[str], exclude: Iterable[str]) -> bool:
    """Globs match the whole relative path; `*` also matches `/`."""
    include = tuple(include)
    return (not include or any(fnmatchcase(path, glob) for glob in include)) and not any(
        fnmatchcase(path, glob) for glob in exclude
    )


def refuse_collisions(paths: Iterable[str]) -> None:
    """Raises `UnsafeKey` where one object's path is another's folder: a file system cannot hold both."""
    files = set(paths)
    for path in files:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder in files:
                raise UnsafeKey(f"object keys {folder!r} and {path!r} need one name for a file and a folder", _REMEDY)


def _problem(path: str) -> str | None:
    if not path or path.startswith("/"):
        return "is no relative path"
    if "\\" in path:
        return "has a backslash"
    if any(ord(char) < 32 or ord(char) == 127 for char in path):
        return "has a control character"
    segments = path.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        return "has an empty, '.' or '..' segment"
    if any(len(segment.encode()) > 255 for segment in segments):
        return "has a segment longer than 255 bytes"
    if len(segments[-1].encode()) > _NAME_BYTES:
        return f"has a file name longer than {_NAME_BYTES} bytes"
    if segments[0] == CONTROL_FOLDER:
        return f"lies in the reserved folder {CONTROL_FOLDER}"
    return None
