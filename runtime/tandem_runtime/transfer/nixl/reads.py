"""The receiving side's memory: slots that reads land in, and what is known of the peers that are read from.

A page is never the target of a read. A slot is, and it serves again only once its read has ended: a peer that was
frozen may answer long after its job has failed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from tandem_runtime.core.errors import StartupError
from tandem_runtime.transfer.ledger import Exported
from tandem_runtime.transfer.nixl.agent import NixlAgent, NixlRead, Region, dram
from tandem_runtime.transfer.protocol import Failure, TransferFault

log = logging.getLogger(__name__)

MAX_SLOTS = 256
"""Streams wait for a slot beyond these, and stall if none comes back."""
MAX_SLOTS_OF_A_PEER = MAX_SLOTS // 4
"""So that one that is frozen leaves slots for the others."""
IDLE_PEERS = 64
"""Stay connected for their next job."""


class Slot:
    """A page's worth of registered memory."""

    def __init__(self, num_bytes: int) -> None:
        self.view = np.empty(num_bytes, dtype=np.uint8).data
        self.region: Region = dram(self.view)


@dataclass(eq=False)
class Peer:
    name: str
    exported: Exported
    users: int = 0
    """Streams, and reads that outlive theirs."""
    slots: int = 0
    """Of its reads under way."""
    broken: bool = False


@dataclass(eq=False)
class Read:
    transfer: NixlRead
    slot: Slot
    peer: Peer


class NixlReads:
    """Used on its receiver's thread only, but for `NixlAgent`'s own rules."""

    def __init__(
        self,
        agent: NixlAgent,
        page_bytes: int,
        max_slots: int = MAX_SLOTS,
        max_slots_of_a_peer: int = MAX_SLOTS_OF_A_PEER,
    ) -> None:
        self._agent = agent
        self._max_slots_of_a_peer = max_slots_of_a_peer
        self._page_bytes = page_bytes
        self._max_slots = max_slots
        self._num_slots = 0
        self._idle: list[Slot] = []
        self._abandoned: list[Read] = []
        self._peers: dict[bytes, Peer] = {}

    def join(self, exported: Exported) -> Peer:
        """For a stream, until `leave`. Raises `TransferFault`."""
        peer = self._peers.pop(exported.agent, None)
        if peer is None:
            peer = Peer(self._agent.connect(exported.agent), exported)
            log.info("reading KV pages of %s by NIXL", peer.name)
        self._peers[exported.agent] = peer
        peer.users += 1
        return peer

    def leave(self, peer: Peer) -> None:
        peer.users -= 1
        idle = [each for each in self._peers.values() if not each.users]
        for each in [each for each in idle if each.broken] + idle[:-IDLE_PEERS]:
            if self._peers.pop(each.exported.agent, None):
                self._agent.disconnect(each.name)

    def start(self, peer: Peer, address: int, num_bytes: int) -> Read | None:
        """None when every slot is taken, or this peer's share. Raises `TransferFault`."""
        slot = self._take() if peer.slots < self._max_slots_of_a_peer else None
        if slot is None:
            return None
        source = (address, peer.exported.segment, peer.exported.device)
        target = (slot.region.address, slot.region.segment, slot.region.device)
        try:
            transfer = self._agent.read(peer.name, source, target, num_bytes)
        except TransferFault:
            peer.broken = True
            self._idle.append(slot)
            raise
        peer.slots += 1
        return Read(transfer, slot, peer)

    def poll(self, read: Read) -> bool:
        """Whether it is done; `end` it then. Raises `TransferFault` when it has failed; it has ended then."""
        try:
            return read.transfer.poll()
        except TransferFault:
            read.peer.broken = True
            self.end(read)
            raise

    def end(self, read: Read) -> None:
        """The slot's bytes are not needed any more, and the read is over."""
        read.peer.slots -= 1
        self._idle.append(read.slot)

    def abandon(self, read: Read) -> None:
        """Its stream has ended, but the read may yet land."""
        read.peer.broken = True
        read.peer.users += 1
        self._abandoned.append(read)

    def sweep(self) -> None:
        """Take back the slots of abandoned reads that have ended."""
        for read in list(self._abandoned):
            try:
                if self.poll(read):
                    self.end(read)
                else:
                    continue
            except TransferFault:
                pass  # it has ended, which is all that matters here
            self._abandoned.remove(read)
            self.leave(read.peer)

    def close(self) -> None:
        """Slots of reads in flight stay registered, and referenced, as long as the agent."""
        self._agent.kept += self._abandoned
        for slot in self._idle:
            self._agent.deregister(slot.region)
        self._idle.clear()
        for peer in self._peers.values():
            self._agent.disconnect(peer.name)
        self._peers.clear()

    def _take(self) -> Slot | None:
        if self._idle:
            return self._idle.pop()
        if self._num_slots == self._max_slots:
            return None
        slot = Slot(self._page_bytes)
        try:
            self._agent.register(slot.region)
        except StartupError as error:
            raise TransferFault(Failure.INTERNAL, str(error)) from None
        self._num_slots += 1
        return slot
