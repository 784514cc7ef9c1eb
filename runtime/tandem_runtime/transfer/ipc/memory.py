"""The seam between the transport and a kind of memory: the host's (`host`), or that of GPUs (`device`)."""

from __future__ import annotations

from typing import Protocol

from tandem_runtime.transfer.descriptors import Described
from tandem_runtime.transfer.ledger import Offer


class Export(Protocol):
    """A rank's KV cache as receivers on this machine may map it. Sender's thread only."""

    offer: Offer

    def file(self) -> int:
        """A descriptor that stands for the memory; the process's own, for as long as the cache lives."""

    def describe(self, page_id: int, heads: range) -> Described:
        """Where, from the memory's beginning; its checksum now, by the kind's own function. Raises `TransferFault`."""


class Window(Protocol):
    """A sender's memory in this process. It stays what it was when the sender ends."""

    num_bytes: int

    def take(self, address: int, page_id: int, heads: range) -> int:
        """Copy to a page of this process; the checksum of what that holds then. Ends with `landed` or `dropped`.

        Raises `TransferFault`."""

    def close(self) -> None:
        """Raises `OSError`; it stays mapped then."""


class Import(Protocol):
    """Where pages go. Receiver's thread only."""

    def map(self, offer: Offer, file: int) -> Window:
        """Leaves `file` open. Raises `TransferFault` (`UNSHARED`) for memory that cannot be mapped, or not safely."""

    def landed(self, page_id: int, heads: range) -> None:
        """The bytes taken are verified; on return the page's owner sees them."""

    def dropped(self, page_id: int, heads: range) -> None:
        """The bytes taken mean nothing."""
