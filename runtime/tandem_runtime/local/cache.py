"""Folders that are made once per machine, whoever asks first: `$TANDEM_CACHE`, else `~/.cache/tandem`."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tandem_contract import env

from tandem_runtime.core.errors import StartupError


def cache_root(environ: Mapping[str, str]) -> Path:
    return Path(environ.get(env.CACHE_DIR) or "~/.cache/tandem").expanduser().absolute()


def ensure_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """Returns `target`, after `build(empty folder)` has filled it if it was not there.

    `target` appears whole or not at all. A second process waits for the first and then finds it made.
    Raises `StartupError` when the cache cannot be written.
    """
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f".{target.name}.lock")):
            if not target.is_dir():
                _build_whole(target, build)
    except OSError as error:
        raise StartupError(
            f"cannot make {target}: {error.strerror or error}; free the disk or set {env.CACHE_DIR} to another folder"
        ) from error
    return target


def _build_whole(target: Path, build: Callable[[Path], None]) -> None:
    prefix = f".{target.name}.partial-"
    for left_by_a_killed_process in target.parent.glob(prefix + "*"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        build(partial)
        partial.chmod(0o755)
        os.rename(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    # flock is released by the kernel when its holder dies, however it dies.
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for the process that holds {path}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
