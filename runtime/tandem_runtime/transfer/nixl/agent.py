"""The NIXL library: everything that calls it is here, and its exceptions stop here."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np

from tandem_runtime.core.errors import StartupError
from tandem_runtime.transfer.ledger import Exported
from tandem_runtime.transfer.protocol import Failure, TransferFault

log = logging.getLogger(__name__)

BACKEND = "UCX"


class Region(msgspec.Struct, frozen=True):
    """Registered memory of this process."""

    address: int
    num_bytes: int
    segment: Literal["DRAM", "VRAM"]
    device: int
    """Of VRAM."""


class NixlAgent:
    """One per rank; its methods belong to one thread at a time. A thread of its own answers peers' reads meanwhile."""

    def __init__(self) -> None:
        """Raises `StartupError` where the extra is missing or no fabric works."""
        try:
            from nixl_cu13._api import nixl_agent, nixl_agent_config
        except ImportError as error:
            raise StartupError(
                f"--kv-transport nixl needs the extra: pip install 'tandem-serving[nixl]' ({error})"
            ) from error
        # Its own handler writes to standard output.
        logging.getLogger("nixl").handlers.clear()
        logging.getLogger("nixl").setLevel(logging.WARNING)
        self.kept: list[object] = []
        """What reads in flight may still write when their receiver is gone."""
        try:
            # The name must never be another process's, nor that of an earlier life of this one.
            self._agent: Any = nixl_agent(f"tandem-{uuid.uuid4()}", nixl_agent_config(backends=[BACKEND]))
        except Exception as error:
            raise StartupError(f"--kv-transport nixl: {BACKEND} finds no usable fabric here: {error}") from error
        if BACKEND not in self._agent.backends:
            raise StartupError(f"--kv-transport nixl: this build of NIXL has no {BACKEND} backend")

    def register(self, region: Region) -> None:
        """Raises `StartupError` for memory that the fabric cannot reach."""
        try:
            self._agent.register_memory([_row(region)], region.segment)
        except Exception as error:
            raise StartupError(
                f"--kv-transport nixl: cannot register {region.num_bytes} bytes of {region.segment}: {error}"
            ) from error

    def deregister(self, region: Region) -> None:
        with contextlib.suppress(Exception):
            self._agent.deregister_memory(self._agent.get_reg_descs([_row(region)], region.segment))

    def exported(self, region: Region) -> Exported:
        """`region`, registered, as peers may read it."""
        return Exported(agent=self._agent.get_agent_metadata(), segment=region.segment, device=region.device)

    def connect(self, metadata: bytes) -> str:
        """The peer's name. Raises `TransferFault`."""
        try:
            name = self._agent.add_remote_agent(metadata)
        except Exception as error:
            raise TransferFault(Failure.PROTOCOL, f"NIXL refuses the sender's metadata: {error}") from None
        return name.decode() if isinstance(name, bytes) else str(name)

    def disconnect(self, peer: str) -> None:
        with contextlib.suppress(Exception):
            self._agent.remove_remote_agent(peer)

    def read(self, peer: str, source: tuple[int, str, int], target: tuple[int, str, int], num_bytes: int) -> NixlRead:
        """Start to copy from the peer's (address, segment, device) to this process's.

        Raises `TransferFault`; nothing is under way then."""
        remote, remote_segment, remote_device = source
        local, local_segment, local_device = target
        agent = self._agent
        try:
            handle = agent.initialize_xfer(
                "READ",
                agent.get_xfer_descs([(local, num_bytes, local_device)], local_segment),
                agent.get_xfer_descs([(remote, num_bytes, remote_device)], remote_segment),
                peer,
            )
        except Exception as error:
            raise TransferFault(
                Failure.PROTOCOL, f"NIXL cannot read {num_bytes} bytes at {remote:#x}: {error}"
            ) from None
        return NixlRead(agent, handle)


class NixlRead:
    """Until `poll` says that it has ended, its target may be written at any time, whatever else is done.

    Giving up the handle, or the peer, stops no read: over TCP, UCX was seen to write all of it later.
    """

    def __init__(self, agent: Any, handle: Any) -> None:
        self._agent = agent
        self._handle = handle
        self._done = self._ended(agent.transfer)

    def poll(self) -> bool:
        """Whether it is done. Raises `TransferFault` when it has failed, and so has ended."""
        self._done = self._done or self._ended(self._agent.check_xfer_state)
        return self._done

    def _ended(self, step: Callable[[Any], str]) -> bool:
        try:
            state = step(self._handle)
        except Exception as error:
            self._release()
            raise TransferFault(Failure.DISCONNECTED, f"NIXL: {error}") from None
        if state == "PROC":
            return False
        self._release()
        if state != "DONE":
            raise TransferFault(Failure.DISCONNECTED, "NIXL: the read failed")
        return True

    def _release(self) -> None:
        with contextlib.suppress(Exception):
            self._agent.release_xfer_handle(self._handle)


def dram(view: memoryview) -> Region:
    """`view`, contiguous, before it is registered."""
    array = np.frombuffer(view, dtype=np.uint8)
    return Region(array.ctypes.data, array.nbytes, "DRAM", 0)


def _row(region: Region) -> tuple[int, int, int, str]:
    return region.address, region.num_bytes, region.device, ""
