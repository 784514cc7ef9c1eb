"""The bytes on a KV data connection, and the socket options it runs with.

sender -> receiver   preamble, hello (msgpack), then frames:
                       header (kind, slot, generation, offset, length), payload, xxh3_64 of the payload
                       or a heartbeat header alone, while the sender has nothing to send
                       (a sender whose pages are read by the receiver sends `descriptors` instead)
receiver -> sender   one verdict, then the connection ends
"""

from __future__ import annotations

import socket
import struct

import msgspec

from tandem_runtime.transfer.ledger import FragmentHeader, Hello
from tandem_runtime.transfer.protocol import Failure, TransferFault

_PREAMBLE = struct.Struct("!6sHI")
_MAGIC = b"TANDEM"
VERSION = 1
MAX_HELLO_BYTES = 64 << 10
"""NIXL's metadata has an address for every network device."""
MAX_VERDICT_BYTES = 4096
_HEADER = struct.Struct("!4sIQQQ")
_PAGE, _BEAT = b"PAGE", b"BEAT"
_CHECKSUM = struct.Struct("!Q")

PREAMBLE_BYTES = _PREAMBLE.size
HEADER_BYTES = _HEADER.size
CHECKSUM_BYTES = _CHECKSUM.size

SLICE_BYTES = 512 << 10
"""Bytes hashed and moved at a time: small enough that the checksum reads them from the cache, big enough that Python's
share of the time is small."""
TURN_BYTES = 4 * SLICE_BYTES
"""A connection yields to the others after this many."""

HEARTBEAT = _HEADER.pack(_BEAT, 0, 0, 0, 0)


def pack_hello(hello: Hello) -> bytes:
    body = msgspec.msgpack.encode(hello)
    return _PREAMBLE.pack(_MAGIC, VERSION, len(body)) + body


def unpack_preamble(data: bytes | bytearray) -> int:
    """Bytes of the hello that follows. Raises `TransferFault`."""
    magic, version, length = _PREAMBLE.unpack(data)
    if magic != _MAGIC:
        raise TransferFault(Failure.PROTOCOL, "no Tandem sender")
    if version != VERSION:
        raise TransferFault(Failure.PROTOCOL, f"protocol version {version}, this side speaks {VERSION}")
    if not 0 < length <= MAX_HELLO_BYTES:
        raise TransferFault(Failure.PROTOCOL, f"hello of {length} bytes")
    return int(length)


def unpack_hello(data: bytes | bytearray) -> Hello:
    try:
        return msgspec.msgpack.decode(data, type=Hello)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TransferFault(Failure.PROTOCOL, f"bad hello: {error}") from None


def pack_header(header: FragmentHeader) -> bytes:
    return _HEADER.pack(_PAGE, header.index, header.generation, header.offset, header.length)


def unpack_header(data: memoryview) -> FragmentHeader | None:
    """None for a heartbeat. Raises `TransferFault`."""
    kind, index, generation, offset, length = _HEADER.unpack(data)
    if kind == _BEAT:
        return None
    if kind != _PAGE:
        raise TransferFault(Failure.PROTOCOL, f"frame of unknown kind {kind!r}")
    return FragmentHeader(index, generation, offset, length)


def pack_checksum(value: int) -> bytes:
    return _CHECKSUM.pack(value)


def unpack_checksum(data: memoryview) -> int:
    return int(_CHECKSUM.unpack(data)[0])


PROGRESS = b"\xc0"
"""From a receiver that reads by itself: pages were verified. Precedes the verdict, and starts none."""


class Verdict(msgspec.Struct, frozen=True):
    """The receiver's last word on a stream; `failure` None when all of it was verified."""

    failure: Failure | None = None
    detail: str = ""


def pack_verdict(verdict: Verdict) -> bytes:
    return msgspec.msgpack.encode(verdict)


def unpack_verdict(data: bytes | bytearray) -> Verdict | None:
    """None when `data` is no whole verdict."""
    try:
        return msgspec.msgpack.decode(data, type=Verdict)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def ticks(stall_timeout_s: float) -> tuple[float, int]:
    """(seconds between ticks, ticks that make a stall). A sender is heard at every tick, so at least once a second."""
    tick_s = min(1.0, stall_timeout_s / 5)
    return tick_s, round(stall_timeout_s / tick_s)


def tune(sock: socket.socket, stall_timeout_s: float) -> None:
    """Buffers are left to the kernel's autotuning, which outgrows what SO_RCVBUF may ask for."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(stall_timeout_s * 1000))
