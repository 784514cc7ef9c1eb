"""Unix sockets between processes of one user on one machine, and the descriptors that cross them.

That a socket of the file system can be connected to is the proof that both ends share a kernel.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress

FILES_AT_MOST = 2


def listen(path: str, backlog: int) -> socket.socket:
    """Raises `OSError`."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


def of_this_user(sock: socket.socket) -> bool:
    """Whether the process at the other end is."""
    _, user, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(user == os.geteuid())


def with_files(files: list[int]) -> list[tuple[int, int, bytes]]:
    """What `sendmsg` takes to send descriptors beside its first byte."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(files)}i", *files))] if files else []


def receive(sock: socket.socket, num_bytes: int) -> tuple[bytes, list[int]]:
    """As `recv`, with the descriptors that came along; they are the caller's to close."""
    data, files, _, _ = socket.recv_fds(sock, num_bytes, FILES_AT_MOST, socket.MSG_CMSG_CLOEXEC)
    return data, files


def adopt(file: int) -> socket.socket:
    """The socket that a received descriptor stands for; `file` stays the caller's. Raises `OSError` if it is none."""
    own = os.dup(file)
    try:
        return socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise


def close_all(files: list[int]) -> None:
    for file in files:
        with suppress(OSError):
            os.close(file)
    files.clear()


class LifeLine:
    """Hangs up, at every process that holds its far end, when this process ends, however it ends."""

    def __init__(self) -> None:
        self._kept, far = socket.socketpair()
        self.far_end = far

    def close(self) -> None:
        self._kept.close()
        self.far_end.close()
