"""The receiving side: the memory of senders on this machine, mapped from their first stream until they end."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tandem_runtime.core.errors import StartupError
from tandem_runtime.transfer.descriptors import Descriptor, DescriptorReader
from tandem_runtime.transfer.ipc import doors
from tandem_runtime.transfer.ipc.memory import Import, Window
from tandem_runtime.transfer.ledger import IncomingStream, Offer
from tandem_runtime.transfer.protocol import Failure, TransferFault

log = logging.getLogger(__name__)

_BACKLOG = 512


@dataclass(eq=False)
class Peer:
    """A sender rank's process."""

    id: bytes
    window: Window
    life_line: socket.socket
    """Readable once the process has ended."""
    streams: int = 0
    gone: bool = False


class IpcReads:
    """Used on its receiver's thread only."""

    def __init__(self, memory: Import, path: str) -> None:
        """`path`: where senders find this process; no file may be there. Raises `StartupError`."""
        self._memory = memory
        self._path = path
        self._peers: dict[bytes, Peer] = {}
        try:
            self.listener = doors.listen(path, _BACKLOG)
        except OSError as error:
            raise StartupError(
                f"--kv-transport ipc: cannot listen on {path}: {error.strerror or error}; set TMPDIR to another folder"
            ) from error

    def peer(self, offer: Offer, files: list[int]) -> Peer:
        """Raises `TransferFault` (`UNSHARED`) for memory that cannot be had here."""
        known = self._peers.get(offer.id)
        if known is not None:
            return known
        if len(files) != 2:
            raise TransferFault(Failure.UNSHARED, "no descriptors came with the sender's hello")
        try:
            life_line = doors.adopt(files[1])
        except OSError as error:
            raise TransferFault(Failure.UNSHARED, f"the sender's life line: {error.strerror}") from None
        try:
            window = self._memory.map(offer, files[0])
        except BaseException:
            life_line.close()
            raise
        peer = self._peers[offer.id] = Peer(offer.id, window, life_line)
        log.info("reading KV pages in another process's memory: %d MiB mapped", offer.num_bytes >> 20)
        return peer

    def lost(self, peer: Peer) -> None:
        """Its process has ended: the memory is this process's alone now, and goes when no stream reads it."""
        peer.gone = True
        self._peers.pop(peer.id, None)
        self._release(peer)

    def reader(self, peer: Peer, stream: IncomingStream) -> IpcReader:
        peer.streams += 1
        return IpcReader(stream, self._memory, peer, on_drop=lambda: self._leave(peer))

    def close(self) -> None:
        self.listener.close()
        with suppress(OSError):
            os.unlink(self._path)
        for peer in list(self._peers.values()):
            self.lost(peer)

    def _leave(self, peer: Peer) -> None:
        peer.streams -= 1
        self._release(peer)

    def _release(self, peer: Peer) -> None:
        if peer.gone and not peer.streams:
            peer.life_line.close()
            try:
                peer.window.close()
            except OSError as error:  # whoever lets go of it, a job that ends say, has more to do
                log.error("the memory of a process that has ended stays mapped: %s", error)


class IpcReader(DescriptorReader):
    """Copies each fragment as soon as it is described: when `advance` returns, nothing is under way."""

    def __init__(self, stream: IncomingStream, memory: Import, peer: Peer, on_drop: Callable[[], None]) -> None:
        super().__init__(stream)
        self._memory = memory
        self._peer = peer
        self._on_drop = on_drop

    def drop(self) -> None:
        self._on_drop()

    def _on_described(self, descriptor: Descriptor, page_id: int) -> int:
        header, heads, window = descriptor.header, self._stream.heads, self._peer.window
        if descriptor.address + header.length > window.num_bytes:
            raise TransferFault(Failure.PROTOCOL, f"slot {header.index} lies beyond the sender's memory")
        try:
            landed = window.take(descriptor.address, page_id, heads)
            self._stream.verify(header.index, descriptor.checksum, landed)
        except Exception:
            self._memory.dropped(page_id, heads)
            raise
        self._memory.landed(page_id, heads)
        return header.length
