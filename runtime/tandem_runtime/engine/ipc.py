"""The wire between API process and engine process: a pair of ZeroMQ PUSH/PULL sockets in a private folder.

Each side encodes a tagged union of message types as MessagePack; there is no network listener and no pickle.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import zmq

from tandem_runtime.engine.client import EngineInfo
from tandem_runtime.engine.messages import (
    Abort,
    Choices,
    ControlCall,
    ControlReply,
    EngineStatus,
    Failed,
    Outputs,
    Progress,
    Shutdown,
    Spans,
)

Socket = TypeVar("Socket", bound=zmq.Socket[Any])

ToEngine = Choices | Abort | ControlCall | ControlReply | Shutdown
FromEngine = Outputs | EngineStatus | Spans | ControlCall | ControlReply | Progress | Failed | EngineInfo

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_from_engine = msgspec.msgpack.Decoder(FromEngine).decode

_PR_SET_PDEATHSIG = 1


def to_engine_address(folder: Path) -> str:
    return f"ipc://{folder}/to-engine"


def from_engine_address(folder: Path) -> str:
    return f"ipc://{folder}/from-engine"


def pull(context: zmq.Context[Socket], address: str) -> Socket:
    socket = context.socket(zmq.PULL)
    socket.set(zmq.RCVHWM, 0)
    socket.bind(address)
    return socket


def push(context: zmq.Context[Socket], address: str) -> Socket:
    """Unbounded: admission is bounded by the engine's queue, and a dead peer is noticed by its process ending."""
    socket = context.socket(zmq.PUSH)
    socket.set(zmq.SNDHWM, 0)
    socket.set(zmq.LINGER, 200)
    socket.connect(address)
    return socket


def die_with_parent(parent_pid: int) -> None:
    """The calling process is killed when its parent ends, however the parent ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
