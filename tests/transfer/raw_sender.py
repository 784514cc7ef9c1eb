"""A sender without manners: says exactly the bytes it is told to."""

from __future__ import annotations

import socket
from typing import Any

import xxhash
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.ledger import FragmentHeader, Hello
from tandem_runtime.transfer.plan import layout_digest
from tandem_runtime.transfer.tcp import wire
from transfer.rig import TOKEN, WAIT_S


class RawSender:
    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)

    def hello(self, job_id: str, shape: KVLayout, **changes: Any) -> None:
        self.sock.sendall(self.greeting(job_id, shape, **changes))

    @staticmethod
    def greeting(job_id: str, shape: KVLayout, **changes: Any) -> bytes:
        fields: dict[str, Any] = {
            "job_id": job_id,
            "data_token": TOKEN,
            "sender_rank": 0,
            "sender_tp": 1,
            "receiver_rank": 0,
            "layout": layout_digest(shape),
        }
        return wire.pack_hello(Hello(**(fields | changes)))

    def header(self, index: int, generation: int, offset: int, length: int) -> None:
        self.sock.sendall(wire.pack_header(FragmentHeader(index, generation, offset, length)))

    def fragment(self, index: int, generation: int, offset: int, payload: bytes) -> None:
        self.header(index, generation, offset, len(payload))
        self.sock.sendall(payload + wire.pack_checksum(xxhash.xxh3_64_intdigest(payload)))

    def read_to_end(self) -> bytes:
        """What the receiver says before it closes the connection."""
        said = b""
        try:
            while data := self.sock.recv(4096):
                said += data
        except ConnectionResetError:
            pass
        return said

    def close(self) -> None:
        self.sock.close()
