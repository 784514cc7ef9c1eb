"""What a sender's data connection carries in the place of pages: where each lies in its memory, and its checksum."""

from __future__ import annotations

import struct

import msgspec

from tandem_runtime.transfer.ledger import FragmentHeader
from tandem_runtime.transfer.protocol import Failure, TransferFault

_RECORD = struct.Struct("!4sIQQQQQ")
_READ, _BEAT = b"READ", b"BEAT"
RECORD_BYTES = _RECORD.size
HEARTBEAT = _RECORD.pack(_BEAT, 0, 0, 0, 0, 0, 0)


class Descriptor(msgspec.Struct, frozen=True):
    header: FragmentHeader
    address: int
    """Of the fragment in the sender's exported memory."""
    checksum: int
    """xxh3_64 of the fragment."""


def pack(descriptor: Descriptor) -> bytes:
    header = descriptor.header
    return _RECORD.pack(
        _READ,
        header.index,
        header.generation,
        header.offset,
        header.length,
        descriptor.address,
        descriptor.checksum,
    )


def unpack(record: memoryview) -> Descriptor | None:
    """None for a heartbeat. Raises `TransferFault`."""
    kind, index, generation, offset, length, address, checksum = _RECORD.unpack(record)
    if kind == _BEAT:
        return None
    if kind != _READ:
        raise TransferFault(Failure.PROTOCOL, f"record of unknown kind {kind!r}")
    return Descriptor(FragmentHeader(index, generation, offset, length), address, checksum)
