"""An engine process that says what nobody can read: at once, or once it is ready."""

from __future__ import annotations

import signal
from pathlib import Path

import zmq
from support.scripted_engine import ScriptedEngine
from tandem_contract.flags import ServeFlags
from tandem_runtime.engine import ipc

UNREADABLE = b"\xc1"
"""The one byte that MessagePack never uses."""


def garbled_at_once(flags: ServeFlags, name: str, folder: Path, parent_pid: int) -> None:
    _say(folder, parent_pid, UNREADABLE)


def garbled_once_ready(flags: ServeFlags, name: str, folder: Path, parent_pid: int) -> None:
    _say(folder, parent_pid, ipc.encode(ScriptedEngine().info), UNREADABLE)


def _say(folder: Path, parent_pid: int, *messages: bytes) -> None:
    ipc.die_with_parent(parent_pid)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    outbound = ipc.push(context, ipc.from_engine_address(folder))
    for message in messages:
        outbound.send(message)
    signal.pause()
