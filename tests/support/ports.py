"""Ports for processes that tests start, and start again on the same one."""

from __future__ import annotations

from tandem_runtime.local.ports import free_ports

_given: set[int] = set()


def free_port() -> int:
    """Never one that an outgoing connection may take before the process listens, nor one given before."""
    (port,) = free_ports("127.0.0.1", 1, avoid=_given)
    _given.add(port)
    return port
