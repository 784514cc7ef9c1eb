"""TCP ports: whether one is taken, and free ones for pods."""

from __future__ import annotations

import errno
import random
import socket
from collections.abc import Collection

from tandem_runtime.core.errors import StartupError

POD_PORTS = range(20_000, 32_000)
"""Below Linux' ephemeral ports (32768 up), so that no outgoing connection takes one before its pod, or its
restarted pod, listens."""


def require_free(host: str, port: int, flag: str) -> None:
    """Raises `StartupError` naming `flag` when nothing can listen there."""
    if not 0 <= port <= 65535:
        raise StartupError(f"{flag} {port} is no port; it must be between 0 and 65535")
    try:
        # As servers do: connections in TIME_WAIT must not look like a listener.
        _bind(host, port, reuse=True).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartupError(f"port {port} is in use; stop what listens there or choose another {flag}") from error
        raise StartupError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; see --host and {flag}"
        ) from error


def free_ports(host: str, count: int, *, avoid: Collection[int] = ()) -> list[int]:
    found: list[int] = []
    for port in random.sample(POD_PORTS, len(POD_PORTS)):
        if len(found) == count:
            break
        if port in avoid:
            continue
        try:
            # Not like a server, which would not notice a pod that has bound the port, but listens when it has loaded.
            _bind(host, port, reuse=False).close()
        except OSError:
            continue
        found.append(port)
    if len(found) < count:
        raise StartupError(f"no {count} free ports from {POD_PORTS.start} to {POD_PORTS.stop} on {host}")
    return found


def _bind(host: str, port: int, *, reuse: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock
