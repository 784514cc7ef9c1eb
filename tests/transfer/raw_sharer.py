"""A sender that shares memory and says of it whatever a test wants."""

from __future__ import annotations

import secrets
import socket
from typing import Any

import xxhash
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer import descriptors
from tandem_runtime.transfer.ipc import doors
from tandem_runtime.transfer.ipc.host import SharedMemory
from tandem_runtime.transfer.ledger import FragmentHeader, Offer
from transfer.raw_sender import RawSender

PAGE = 4 * 256
"""Bytes of a page of the rig's default shape."""
BLANK = xxhash.xxh3_64_intdigest(b"\x55" * PAGE)


class RawSharer(RawSender):
    """Shares four pages of 0x55."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(path)
        self.memory = SharedMemory(4 * PAGE)
        self.memory.view[:] = b"\x55" * (4 * PAGE)
        self.life_line = doors.LifeLine()

    def share(
        self, job_id: str, shape: KVLayout, *, memory: int | None = None, life_line: int | None = None, **changes: Any
    ) -> None:
        """The hello with its descriptors, or with others; a negative `memory`: with none. `changes` of the offer."""
        offer = Offer(**({"kind": "host", "id": secrets.token_bytes(16), "num_bytes": 4 * PAGE} | changes))
        memory = self.memory.file if memory is None else memory
        life_line = self.life_line.far_end.fileno() if life_line is None else life_line
        files = [memory, life_line] if memory >= 0 else []
        self.sock.sendmsg([self.greeting(job_id, shape, offer=offer)], doors.with_files(files))

    def close(self) -> None:
        super().close()
        self.life_line.close()


def record(index: int, *, address: int = 0, checksum: int = BLANK) -> bytes:
    return descriptors.pack(descriptors.Descriptor(FragmentHeader(index, 1, 0, PAGE), address, checksum))
