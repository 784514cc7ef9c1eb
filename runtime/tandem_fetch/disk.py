"""Disk space: the check before the first byte, and preallocation."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from pathlib import Path

from tandem_fetch.errors import DiskProblem

_libc = ctypes.CDLL(None, use_errno=True)


def free_bytes(folder: Path) -> int:
    """Bytes an unprivileged process may still write below `folder`."""
    return shutil.disk_usage(folder).free


def require_space(*, needed: int, free: int, keep_free: int, folder: Path) -> None:
    """Raises `DiskProblem` with the numbers."""
    if needed + keep_free > free:
        raise DiskProblem(
            f"{folder} has {gigabytes(free)} free, the download needs {gigabytes(needed)} "
            f"and --keep-free asks for {gigabytes(keep_free)}",
            f"free at least {gigabytes(needed + keep_free - free)} or use a larger cache volume",
        )


def preallocate(fd: int, size: int) -> None:
    """Reserves `size` bytes, so that a full disk shows now; a sparse file where the file system cannot reserve.

    Not `os.posix_fallocate`: where a file system has no fallocate (NFSv3), glibc imitates it by writing to every block.
    """
    if size and _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))
    os.ftruncate(fd, size)


def allocated_bytes(path: Path) -> int:
    """Blocks a partial file already holds, in bytes; 0 where there is none."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"
