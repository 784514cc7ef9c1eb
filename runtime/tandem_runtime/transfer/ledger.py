"""What a receive job still expects, and every rule an arriving fragment must pass. Pure bookkeeping, no I/O.

A job on one rank is one stream per sender rank that feeds it; a stream brings one fragment (a head range) of each slot.
"""

from __future__ import annotations

import hmac
from typing import Literal

import msgspec

from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.plan import byte_range, layout_digest, peer_layout, senders_to
from tandem_runtime.transfer.protocol import NIXL, Failure, ReceiveJob, ReceiveReport, TransferFault


class Exported(msgspec.Struct, frozen=True):
    """How to read a sender rank's KV cache by NIXL."""

    agent: bytes
    """NIXL's metadata of the sender's agent."""
    segment: Literal["DRAM", "VRAM"]
    device: int
    """Of VRAM."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A sender rank's KV cache, whose descriptor comes with the hello over a Unix socket."""

    kind: str
    """`host`, or the GPU's UUID."""
    id: bytes
    """Of this memory, in all processes of all time."""
    num_bytes: int


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """How a sender rank introduces itself to a receiver rank."""

    job_id: str
    data_token: str
    sender_rank: int
    sender_tp: int
    receiver_rank: int
    layout: str
    """`plan.layout_digest`."""
    exported: Exported | None = None
    """Set where descriptors follow, in the place of pages."""
    offer: Offer | None = None
    """As `exported`, for a receiver on the same machine."""

    @property
    def transport(self) -> str:
        """How its pages will travel; as `--kv-transport`."""
        return "ipc" if self.offer else NIXL if self.exported else "tcp"


class FragmentHeader(msgspec.Struct, frozen=True):
    index: int
    """Slot of the job."""
    generation: int
    offset: int
    """Of the fragment inside the receiver rank's page, bytes."""
    length: int


class IncomingStream:
    """The fragments one sender rank owes this rank."""

    def __init__(self, job: ReceiveJob, heads: range, offset: int, length: int) -> None:
        self.heads = heads
        self.claimed = False
        """A sender has introduced itself as this stream's."""
        self.transport = ""
        """How its pages travel, once it is claimed."""
        self.verified = 0
        self.length = length
        self._offset = offset
        self._slots = job.slots
        self._arrived = bytearray(len(job.slots))

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    @property
    def complete(self) -> bool:
        return self.verified == len(self._slots)

    def holds(self, index: int) -> bool:
        return bool(self._arrived[index])

    def expect(self, header: FragmentHeader) -> int:
        """The page id that the fragment may be written to. Raises `TransferFault`; then nothing may be written."""
        if not 0 <= header.index < len(self._slots):
            raise TransferFault(Failure.PROTOCOL, f"slot {header.index} of {len(self._slots)}")
        page_id, generation = self._slots[header.index]
        if header.generation != generation:
            raise TransferFault(
                Failure.GENERATION, f"slot {header.index} is generation {generation}, sent {header.generation}"
            )
        if (header.offset, header.length) != (self._offset, self.length):
            raise TransferFault(
                Failure.PROTOCOL,
                f"slot {header.index}: {header.length} bytes at {header.offset}, "
                f"expected {self.length} at {self._offset}",
            )
        if self._arrived[header.index]:
            raise TransferFault(Failure.PROTOCOL, f"slot {header.index} sent twice")
        return page_id

    def verify(self, index: int, sent: int, landed: int) -> None:
        """Compare checksums of the sent and the landed bytes. Raises `TransferFault`."""
        if sent != landed:
            raise TransferFault(Failure.CHECKSUM, f"slot {index}: sent {sent:016x}, landed {landed:016x}")
        self._arrived[index] = 1
        self.verified += 1


class IncomingJob:
    """A receive job on one rank."""

    def __init__(self, job: ReceiveJob, layout: KVLayout, rank: int) -> None:
        self.job = job
        self._rank = rank
        self._digest = layout_digest(layout)
        self.streams = {
            sender_rank: IncomingStream(job, heads, *byte_range(layout, rank, heads))
            for sender_rank, heads in senders_to(peer_layout(layout, job.sender_tp), layout, rank).items()
        }

    @property
    def complete(self) -> bool:
        return all(stream.complete for stream in self.streams.values())

    def authentic(self, hello: Hello) -> bool:
        return hmac.compare_digest(self.job.data_token.encode(), hello.data_token.encode())

    def claim(self, hello: Hello) -> IncomingStream:
        """The stream of an authentic sender. Raises `TransferFault`."""
        if hello.layout != self._digest:
            raise TransferFault(Failure.LAYOUT, "page layouts differ")
        if hello.sender_tp != self.job.sender_tp:
            raise TransferFault(Failure.LAYOUT, f"sender has TP {hello.sender_tp}, announced {self.job.sender_tp}")
        if hello.receiver_rank != self._rank:
            raise TransferFault(Failure.LAYOUT, f"meant for rank {hello.receiver_rank}, this is rank {self._rank}")
        stream = self.streams.get(hello.sender_rank)
        if stream is None:
            raise TransferFault(Failure.LAYOUT, f"sender rank {hello.sender_rank} has no heads for rank {self._rank}")
        if stream.claimed:
            raise TransferFault(Failure.PROTOCOL, f"sender rank {hello.sender_rank} connected twice")
        stream.claimed, stream.transport = True, hello.transport
        return stream

    def report(self, fault: TransferFault | None) -> ReceiveReport:
        streams, slots = self.streams.values(), range(len(self.job.slots))
        return ReceiveReport(
            job_id=self.job.job_id,
            ok=fault is None,
            error=fault.failure if fault else None,
            detail=fault.detail if fault else "",
            pages=sum(all(stream.holds(slot) for stream in streams) for slot in slots) if fault else len(slots),
            bytes=sum(stream.verified * stream.length for stream in streams),
            transports=sorted({stream.transport for stream in streams if stream.claimed}),
        )
