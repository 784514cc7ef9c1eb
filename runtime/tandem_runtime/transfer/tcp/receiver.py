"""The receiving end of the TCP transport."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from collections.abc import Callable

from tandem_runtime.transfer.descriptors import DescriptorReader
from tandem_runtime.transfer.ipc import doors
from tandem_runtime.transfer.ipc.reads import IpcReads, Peer
from tandem_runtime.transfer.ledger import Hello, IncomingJob, IncomingStream, Offer
from tandem_runtime.transfer.memory import PageSink
from tandem_runtime.transfer.nixl.reader import NixlReader
from tandem_runtime.transfer.nixl.reads import NixlReads
from tandem_runtime.transfer.protocol import DeviceFault, Failure, OnReceive, ReceiveJob, TransferFault
from tandem_runtime.transfer.tcp import wire
from tandem_runtime.transfer.tcp.loop import SelectorLoop
from tandem_runtime.transfer.tcp.reader import FrameReader

log = logging.getLogger(__name__)

NAP_S = 50e-6
"""Between looks at reads under way; they tell nobody when they end."""
MAX_STRANGERS = 256
"""Connections that have not introduced themselves; the oldest goes when there are more."""


class TcpReceiver:
    """A `PageReceiver` on `host:port` (0: any free port).

    Everything but the public methods runs on the loop's thread: once a job's connections are closed there, no write to
    its pages is in progress or can follow, and that is when it is reported.
    """

    def __init__(
        self,
        sink: PageSink,
        on_report: OnReceive,
        *,
        host: str = "0.0.0.0",
        port: int = 0,
        stall_timeout_s: float = 10.0,
        nixl: NixlReads | None = None,
        ipc: IpcReads | None = None,
    ) -> None:
        """`stall_timeout_s`: how long each sender may take to connect, and then stay silent (one with nothing to send
        makes itself heard). `nixl`, `ipc`: for senders that export their pages; closed by `stop`.
        Raises `OSError` when the port is taken."""
        self._sink = sink
        self._on_report = on_report
        self._stall_timeout_s = stall_timeout_s
        self._nixl = nixl
        self._ipc = ipc
        self._jobs: dict[str, _Job] = {}
        self._strangers: dict[_Connection, None] = {}
        listener = socket.create_server((host, port), backlog=512)
        self._port: int = listener.getsockname()[1]
        self._listeners = [listener, ipc.listener] if ipc else [listener]
        tick_s, self._stall_ticks = wire.ticks(stall_timeout_s)
        self._loop = SelectorLoop(f"kv-receiver-{self._port}", tick_s, self._on_tick, self._poll if nixl else None)
        for each in self._listeners:
            each.setblocking(False)
        self._watch_listeners()
        self._loop.start()

    @property
    def port(self) -> int:
        return self._port

    def open(self, job: ReceiveJob) -> None:
        assert all(0 <= page_id < self._sink.num_pages for page_id, _ in job.slots), "slot out of range"
        entry = _Job(IncomingJob(job, self._sink.layout, self._sink.rank))
        self._loop.call(lambda: self._open(entry))

    def close(self, job_id: str, reason: str) -> None:
        self._loop.call(lambda: self._fail(job_id, TransferFault(Failure.CANCELLED, reason)))

    def stop(self) -> None:
        self._loop.stop(self._shut_down)

    def _open(self, job: _Job) -> None:
        assert job.id not in self._jobs, "job opened twice"
        self._jobs[job.id] = job
        self._settle(job)

    def _watch_listeners(self) -> None:
        for each in self._listeners:
            self._loop.watch(each, selectors.EVENT_READ, lambda mask, listener=each: self._on_accept(listener))  # type: ignore[misc]

    def _on_accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            self._loop.unwatch(listener)  # out of descriptors, perhaps: not again before the next tick
            return
        if sock.family == socket.AF_UNIX and not doors.of_this_user(sock):
            sock.close()
            return
        wire.tune(sock, self._stall_timeout_s)
        connection = _Connection(sock)
        self._strangers[connection] = None
        if len(self._strangers) > MAX_STRANGERS:
            self._drop_stranger(next(iter(self._strangers)))
        self._loop.watch(sock, selectors.EVENT_READ, lambda mask: self._on_readable(connection))

    def _on_readable(self, connection: _Connection) -> None:
        self._attempt(connection, self._receive)

    def _poll(self) -> float | None:
        assert self._nixl is not None
        self._nixl.sweep()
        reading = [each for job in self._jobs.values() for each in job.connections if each.reading]
        for connection in reading:
            self._attempt(connection, _Connection.poll)
        if not any(each.reading for each in reading):
            return None
        return 0.0 if any(each.landed for each in reading) else NAP_S

    def _receive(self, connection: _Connection) -> None:
        if connection.reader is None:
            hello = connection.receive_hello()
            if hello is None:
                return
            self._introduce(connection, hello)
        connection.quiet_ticks = 0  # not for strangers: a trickle of bytes buys them no time
        connection.receive_pages()

    def _attempt(self, connection: _Connection, work: Callable[[_Connection], None]) -> None:
        """One step of a connection, and what follows from its outcome."""
        try:
            work(connection)
        except TransferFault as fault:
            if isinstance(fault, DeviceFault):
                log.error("while receiving KV pages: %s", fault.detail)
            self._drop(connection, fault)
        except OSError as error:
            self._drop(connection, TransferFault(Failure.DISCONNECTED, f"{connection.name}: {error.strerror or error}"))
        except Exception:
            log.exception("bug while receiving KV pages")
            self._drop(connection, TransferFault(Failure.INTERNAL, "see the log"))
        else:
            if connection.stream is not None and connection.stream.complete:
                self._end(connection, wire.Verdict())
                self._settle(self._jobs[connection.job_id])

    def _introduce(self, connection: _Connection, hello: Hello) -> None:
        """Raises `TransferFault`, which concerns the job only once the token has proved that the sender is its own."""
        job = self._jobs.get(hello.job_id)
        if job is None or not job.incoming.authentic(hello):
            raise TransferFault(Failure.REJECTED, "unknown job or wrong token")
        peer = self._peer(hello.offer, connection.files) if hello.offer else None
        del self._strangers[connection]
        connection.job_id = job.id
        job.connections.append(connection)
        stream = job.incoming.claim(hello)
        connection.begin(stream, self._reader(stream, hello, peer), f"sender rank {hello.sender_rank}")

    def _peer(self, offer: Offer, files: list[int]) -> Peer:
        """Raises `TransferFault`, which does not concern the job: the sender comes back over TCP."""
        if self._ipc is None:
            raise TransferFault(Failure.UNSHARED, "this side maps no memory")
        ipc, peer = self._ipc, self._ipc.peer(offer, files)

        def on_lost(mask: int) -> None:
            self._loop.unwatch(peer.life_line)
            ipc.lost(peer)

        self._loop.watch(peer.life_line, selectors.EVENT_READ, on_lost)
        return peer

    def _reader(self, stream: IncomingStream, hello: Hello, peer: Peer | None) -> FrameReader | DescriptorReader:
        if peer is not None:
            assert self._ipc is not None
            return self._ipc.reader(peer, stream)
        if hello.exported is None:
            return FrameReader(stream, self._sink)
        if self._nixl is None:
            raise TransferFault(Failure.PROTOCOL, "this side does not read by NIXL")
        return NixlReader(stream, self._sink, self._nixl, hello.exported)

    def _drop(self, connection: _Connection, fault: TransferFault) -> None:
        if connection in self._strangers:
            self._drop_stranger(connection, fault)
        else:
            self._fail(connection.job_id, fault)

    def _drop_stranger(self, connection: _Connection, fault: TransferFault | None = None) -> None:
        del self._strangers[connection]
        answered = fault is not None and fault.failure in (Failure.REJECTED, Failure.UNSHARED)
        self._end(connection, wire.Verdict(fault.failure, fault.detail) if fault and answered else None)

    def _fail(self, job_id: str, fault: TransferFault) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            job.fault = fault
            self._settle(job)

    def _settle(self, job: _Job) -> None:
        """Report the job if it has ended."""
        if job.fault is None and not job.incoming.complete:
            return
        del self._jobs[job.id]
        for connection in job.connections:
            if not connection.closed:
                self._end(connection, wire.Verdict(job.fault.failure, job.fault.detail) if job.fault else None)
        self._on_report(job.incoming.report(job.fault))

    def _end(self, connection: _Connection, verdict: wire.Verdict | None) -> None:
        self._loop.unwatch(connection.sock)
        connection.close(verdict)

    def _on_tick(self) -> None:
        self._watch_listeners()
        for connection in list(self._strangers):
            connection.quiet_ticks += 1
            if connection.quiet_ticks > self._stall_ticks:
                self._drop_stranger(connection)
        for job in list(self._jobs.values()):
            job.ticks += 1
            quiet = next((c for c in job.connections if c.tick() > self._stall_ticks), None)
            if quiet is not None:
                self._fail(job.id, TransferFault(Failure.STALLED, f"{quiet.name} {quiet.complaint}"))
            elif job.ticks > self._stall_ticks and not all(s.claimed for s in job.incoming.streams.values()):
                self._fail(job.id, TransferFault(Failure.STALLED, "not every sender rank connected in time"))

    def _shut_down(self) -> None:
        for connection in list(self._strangers):
            self._drop_stranger(connection)
        for job_id in list(self._jobs):
            self._fail(job_id, TransferFault(Failure.SHUTDOWN, "the receiver stopped"))
        for each in self._listeners:
            self._loop.unwatch(each)
            each.close()
        if self._nixl is not None:
            self._nixl.close()
        if self._ipc is not None:
            self._ipc.close()


class _Job:
    def __init__(self, incoming: IncomingJob) -> None:
        self.incoming = incoming
        self.id = incoming.job.job_id
        self.connections: list[_Connection] = []
        self.fault: TransferFault | None = None
        self.ticks = 0


class _Connection:
    """A stranger until its hello is accepted, then one sender rank's stream of a job."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closed = False
        self.job_id = ""
        self.name = "a sender"
        self.stream: IncomingStream | None = None
        self.reader: FrameReader | DescriptorReader | None = None
        self.files: list[int] = []
        """That came with its hello."""
        self.quiet_ticks = 0
        self.progressed = False
        """Pages were verified since the last tick."""
        self.landed = False
        """In the last poll."""
        self._hello = bytearray()
        self._hello_bytes = wire.PREAMBLE_BYTES

    def receive_hello(self) -> Hello | None:
        """The hello once it is whole. Raises `TransferFault`, `OSError`."""
        while True:
            while missing := self._hello_bytes - len(self._hello):
                try:
                    data, files = doors.receive(self.sock, missing)
                except BlockingIOError:
                    return None
                doors.close_all(self.files if files else [])
                self.files += files
                if not data:
                    raise TransferFault(Failure.DISCONNECTED, "left before its hello")
                self._hello += data
            if self._hello_bytes > wire.PREAMBLE_BYTES:
                return wire.unpack_hello(self._hello[wire.PREAMBLE_BYTES :])
            self._hello_bytes += wire.unpack_preamble(self._hello)

    def begin(self, stream: IncomingStream, reader: FrameReader | DescriptorReader, name: str) -> None:
        self.stream, self.reader, self.name = stream, reader, name
        self._hello.clear()
        doors.close_all(self.files)

    def receive_pages(self) -> None:
        """What has arrived, up to a turn's share. Raises `TransferFault`, `OSError`."""
        assert self.reader is not None
        assert self.stream is not None
        budget = wire.TURN_BYTES
        while budget > 0 and not self.stream.complete:
            try:
                count = self.sock.recvmsg_into(self.reader.buffers())[0]
            except BlockingIOError:
                return
            if count == 0:
                raise TransferFault(
                    Failure.DISCONNECTED, f"{self.name} left after {self.stream.verified} verified fragments"
                )
            before = self.stream.verified
            budget -= self.reader.advance(count)
            self.progressed |= self.stream.verified > before

    @property
    def reading(self) -> bool:
        """Pages of a sender that exports them are wanted, or under way."""
        return not self.closed and isinstance(self.reader, NixlReader) and self.reader.busy

    @property
    def complaint(self) -> str:
        """What it did to have too many ticks."""
        if isinstance(self.reader, NixlReader) and self.reader.busy:
            return "has pages that cannot be read"
        return "went silent"

    def poll(self) -> None:
        """Raises `TransferFault`."""
        assert isinstance(self.reader, NixlReader)
        self.landed = self.reader.poll()
        self.progressed |= self.landed

    def tick(self) -> int:
        """Ticks since the sender was last heard, or its pages could last be read; 0 once it has sent everything."""
        self.quiet_ticks = 0 if self.closed else self.quiet_ticks + 1
        if not isinstance(self.reader, DescriptorReader) or self.closed:
            return self.quiet_ticks
        if self.progressed:
            self.progressed = False
            with contextlib.suppress(OSError):
                self.sock.send(wire.PROGRESS)
        unheard = 0 if self.reader.told_all else self.quiet_ticks
        return max(unheard, self.reader.tick()) if isinstance(self.reader, NixlReader) else unheard

    def close(self, verdict: wire.Verdict | None) -> None:
        self.closed = True
        if self.reader is not None:
            self.reader.drop()
        doors.close_all(self.files)
        with contextlib.suppress(OSError):
            if verdict is not None:
                self.sock.send(wire.pack_verdict(verdict))
        self.sock.close()
