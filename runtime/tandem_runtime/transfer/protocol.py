"""What every KV transport implements, and the values it exchanges with the handoff coordinator.

One `PageReceiver` per rank of a decode process, one `PageSender` per rank of a prefill process. Both report each job
exactly once, and a report is a promise: no write (receiver) and no read (sender) of the job's pages happens after it.
That promise is what lets the owner reuse a page. Reports come on the transport's own thread and must return quickly.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

import msgspec


class Failure(StrEnum):
    """Why a job failed; fit for a metric label."""

    CANCELLED = "cancelled"
    """This side's owner closed or aborted the job."""
    DISCONNECTED = "disconnected"
    """The peer's connection ended early: it died, aborted, or the network broke."""
    STALLED = "stalled"
    """The peer is silent, or takes no bytes, for longer than the stall timeout."""
    UNREACHABLE = "unreachable"
    """The receiver's address does not resolve or does not accept connections."""
    REJECTED = "rejected"
    """The receiver does not know the job, or its token differs."""
    UNSHARED = "unshared"
    """The receiver cannot map the sender's memory; the sender goes on over TCP."""
    LAYOUT = "layout"
    """The peers disagree on page layout, ranks or tensor parallelism."""
    GENERATION = "generation"
    """A frame names a page generation that is not the one reserved."""
    CHECKSUM = "checksum"
    """Landed bytes do not hash to what was sent."""
    PROTOCOL = "protocol"
    """A frame out of range, repeated, of a wrong size, or no frame at all."""
    DEVICE = "device"
    """A GPU refused to copy or to hash a page; the log has its words."""
    SHUTDOWN = "shutdown"
    """This side's transport stopped."""
    INTERNAL = "internal"
    """A bug on this side; the log has the traceback."""


NIXL = "nixl"
"""The name, among transports, of receivers that read pages from the sender's memory over a fabric."""


class ReceiveJob(msgspec.Struct, frozen=True, kw_only=True):
    job_id: str
    data_token: str
    """Secret that authenticates the sender's connections."""
    sender_tp: int
    slots: list[tuple[int, int]]
    """(page id, generation) of this rank; slot i receives page first_page + i of the sequence."""


class ReceiveReport(msgspec.Struct, frozen=True, kw_only=True):
    job_id: str
    ok: bool
    """Every fragment of every slot arrived exactly once and was verified."""
    error: Failure | None = None
    detail: str = ""
    pages: int = 0
    """Slots that were verified whole."""
    bytes: int = 0
    """Verified bytes on this rank."""
    transports: list[str] = []
    """How pages of its senders travelled; as `--kv-transport`."""


class SendJob(msgspec.Struct, frozen=True, kw_only=True):
    job_id: str
    data_token: str
    host: str
    """Name or address of the decode process."""
    data_ports: list[int]
    """KV data port of each decode rank; their number is the receiver's tensor parallelism."""
    slots: list[tuple[int, int]]
    """(page id, generation) of the decode side, as granted."""
    transports: list[str] = []
    """Those of the receiver's ranks besides TCP."""
    ipc_paths: list[str] = []
    """Unix socket of each decode rank, for a sender on its machine; empty when they have none."""


class SendReport(msgspec.Struct, frozen=True, kw_only=True):
    job_id: str
    ok: bool
    """Every receiver rank that this rank feeds has verified all of it."""
    error: Failure | None = None
    detail: str = ""
    pages: int = 0
    """Queued by the owner; all of the job's when `ok`."""
    bytes: int = 0
    """Payload that this rank handed to the network, to all receiver ranks together."""


OnReceive = Callable[[ReceiveReport], None]
OnSend = Callable[[SendReport], None]


class PageReceiver(Protocol):
    """All methods are thread-safe and return at once."""

    @property
    def port(self) -> int:
        """Where this rank's senders connect; goes into the grant's `data_ports`."""

    def open(self, job: ReceiveJob) -> None:
        """Expect `job`; call it before the grant is answered. No other open job may hold any of its pages.

        Raises `HandoffError` for a `sender_tp` that cannot shard the layout."""

    def close(self, job_id: str, reason: str) -> None:
        """Stop writes of the job; its report (`CANCELLED`) follows once they have. Ignored once reported."""

    def stop(self) -> None:
        """Fail the open jobs (`SHUTDOWN`), release the port, return when the transport's thread has ended."""


class PageSender(Protocol):
    """All methods are thread-safe and return at once. Calls for a job already reported are ignored."""

    def open(self, job: SendJob) -> None:
        """Connect to the receiver's ranks; pages may be queued at once.

        Raises `HandoffError` for a number of `data_ports` that cannot shard the layout."""

    def send(self, job_id: str, first_index: int, page_ids: list[int]) -> None:
        """Queue this rank's pages for slots first_index, first_index + 1, ...; they stay unchanged until the report."""

    def finish(self, job_id: str) -> None:
        """Every slot was queued; without it the job does not report success."""

    def abort(self, job_id: str, reason: str) -> None:
        """Stop reading the job's pages; its report (`CANCELLED`) follows once that is so."""

    def stop(self) -> None:
        """Fail the open jobs (`SHUTDOWN`) and return when the transport's thread has ended."""


class TransferFault(Exception):
    """A job's stream broke a rule; ends the job, never leaves `transfer`."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(f"{failure}: {detail}")
        self.failure = failure
        self.detail = detail


class DeviceFault(TransferFault):
    """A GPU of this side failed; to be said in the log, beside the report."""

    def __init__(self, what: str, error: OSError) -> None:
        super().__init__(Failure.DEVICE, f"{what}: {error}")
