"""The sending end of the TCP transport."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from tandem_runtime.transfer.descriptors import DescriptorWriter
from tandem_runtime.transfer.ipc import doors
from tandem_runtime.transfer.ipc.export import IpcExport
from tandem_runtime.transfer.ledger import Hello
from tandem_runtime.transfer.memory import PageSource
from tandem_runtime.transfer.nixl.export import NixlExport
from tandem_runtime.transfer.outgoing import StreamWriter
from tandem_runtime.transfer.plan import byte_range, layout_digest, peer_layout, receivers_of
from tandem_runtime.transfer.protocol import NIXL, DeviceFault, Failure, OnSend, SendJob, SendReport, TransferFault
from tandem_runtime.transfer.tcp import wire
from tandem_runtime.transfer.tcp.loop import SelectorLoop
from tandem_runtime.transfer.tcp.writer import FrameWriter

log = logging.getLogger(__name__)

_RESOLVER_THREADS = 4
"""Name look-ups block; a slow one must not hold up the loop."""


class TcpSender:
    """A `PageSender`. Everything but the public methods runs on the loop's thread."""

    def __init__(
        self,
        source: PageSource,
        on_report: OnSend,
        *,
        stall_timeout_s: float = 10.0,
        nixl: NixlExport | None = None,
        ipc: IpcExport | None = None,
    ) -> None:
        """`stall_timeout_s`: how long a receiver may take to connect, to take more bytes, or to give its verdict.
        `nixl`, `ipc`: for receivers that read pages by themselves; closed by `stop`."""
        self._source = source
        self._on_report = on_report
        self._stall_timeout_s = stall_timeout_s
        self._nixl = nixl
        self._ipc = ipc
        self._digest = layout_digest(source.layout)
        self._unshared: set[str] = set()
        """Hosts of which it was said already."""
        self._jobs: dict[str, _Job] = {}
        self._resolver = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="kv-resolve")
        tick_s, self._stall_ticks = wire.ticks(stall_timeout_s)
        self._loop = SelectorLoop("kv-sender", tick_s, self._on_tick)
        self._loop.start()

    def open(self, job: SendJob) -> None:
        receiver = peer_layout(self._source.layout, len(job.data_ports))
        entry = _Job(job)
        for rank, heads in receivers_of(self._source.layout, self._source.rank, receiver).items():
            path = job.ipc_paths[rank] if self._ipc and job.ipc_paths else None
            make_writer = partial(self._writer, entry, rank, heads)
            entry.channels.append(_Channel(f"receiver rank {rank}", job.data_ports[rank], path, make_writer))
        self._loop.call(lambda: self._open(entry))

    def send(self, job_id: str, first_index: int, page_ids: list[int]) -> None:
        pages = list(enumerate(page_ids, first_index))
        self._loop.call(lambda: self._queue(job_id, pages))

    def finish(self, job_id: str) -> None:
        self._loop.call(lambda: self._finish(job_id))

    def abort(self, job_id: str, reason: str) -> None:
        self._loop.call(lambda: self._fail(job_id, TransferFault(Failure.CANCELLED, reason)))

    def stop(self) -> None:
        self._loop.stop(self._shut_down)
        self._resolver.shutdown(wait=False, cancel_futures=True)
        if self._nixl is not None:
            self._nixl.close()
        if self._ipc is not None:
            self._ipc.close()

    def _open(self, job: _Job) -> None:
        assert job.id not in self._jobs, "job opened twice"
        self._jobs[job.id] = job
        if not job.spec.slots:
            job.channels.clear()
        for channel in job.channels:
            found = self._resolver.submit(socket.getaddrinfo, job.spec.host, channel.port, type=socket.SOCK_STREAM)
            found.add_done_callback(lambda f, c=channel: self._loop.call(lambda: self._on_resolved(job, c, f)))  # type: ignore[misc]

    def _writer(self, job: _Job, rank: int, heads: range, shared: bool) -> StreamWriter:
        """`shared`: to a receiver that will map this process's memory."""
        spec, source = job.spec, self._source
        nixl = self._nixl if NIXL in spec.transports and not shared else None
        hello = Hello(
            job_id=spec.job_id,
            data_token=spec.data_token,
            sender_rank=source.rank,
            sender_tp=source.layout.tensor_parallel,
            receiver_rank=rank,
            layout=self._digest,
            exported=nixl.exported if nixl else None,
            offer=self._ipc.offer if self._ipc and shared else None,
        )
        offset, _ = byte_range(peer_layout(source.layout, len(spec.data_ports)), rank, heads)
        greeting = wire.pack_hello(hello)
        if export := self._ipc if shared else nixl:
            return DescriptorWriter(export, heads, offset, spec.slots, job.queue, greeting)
        return FrameWriter(source, heads, offset, spec.slots, job.queue, greeting)

    def _queue(self, job_id: str, pages: list[tuple[int, int]]) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            return
        if not all(0 <= index < len(job.spec.slots) for index, _ in pages):
            self._fail(job_id, TransferFault(Failure.PROTOCOL, f"pages beyond the {len(job.spec.slots)} slots"))
            return
        job.queue += pages
        for channel in job.channels:
            if channel.connected:
                self._watch(job, channel)

    def _finish(self, job_id: str) -> None:
        job = self._jobs.get(job_id)
        if job is None:
            return
        if len(job.queue) != len(job.spec.slots):
            detail = f"finished after {len(job.queue)} of {len(job.spec.slots)} pages"
            self._fail(job_id, TransferFault(Failure.PROTOCOL, detail))
            return
        job.finished = True
        self._settle(job)

    def _on_resolved(self, job: _Job, channel: _Channel, found: Future[Any]) -> None:
        if channel.closed or found.cancelled():
            return
        try:
            channel.addresses = [(family, address) for family, _, _, _, address in found.result()]
            if channel.path is not None:
                channel.addresses.insert(0, (socket.AF_UNIX, channel.path))
        except OSError as error:
            fault = TransferFault(Failure.UNREACHABLE, f"{job.spec.host}: {error.strerror or error}")
            self._fail(job.id, fault)
            return
        self._connect(job, channel, "no address")

    def _connect(self, job: _Job, channel: _Channel, why: str) -> None:
        """Start connecting to the next address. `why` the one before failed."""
        self._disconnect(channel)
        if not channel.addresses:
            self._fail(job.id, TransferFault(Failure.UNREACHABLE, f"{channel.name} at {job.spec.host}: {why}"))
            return
        family, address = channel.addresses.pop(0)
        if channel.path is not None and family != socket.AF_UNIX:
            if job.spec.host not in self._unshared:
                self._unshared.add(job.spec.host)
                log.info("pages for %s go over TCP, not through shared memory: %s", job.spec.host, why)
            channel.leave_unix()
        try:
            channel.sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # no such address family here, or out of descriptors
            self._connect(job, channel, str(error))
            return
        wire.tune(channel.sock, self._stall_timeout_s)
        try:
            refused = channel.sock.connect_ex(address)
        except (OSError, ValueError) as error:  # no path that a socket can have
            self._connect(job, channel, str(error))
            return
        if refused not in (0, errno.EINPROGRESS):
            self._connect(job, channel, os.strerror(refused))
            return
        if family == socket.AF_UNIX:
            assert self._ipc is not None
            if not doors.of_this_user(channel.sock):
                self._connect(job, channel, f"{address} is another user's")
                return
            channel.ancillary = doors.with_files(self._ipc.files())
        self._loop.watch(channel.sock, selectors.EVENT_WRITE, lambda mask: self._on_connected(job, channel))

    def _on_connected(self, job: _Job, channel: _Channel) -> None:
        assert channel.sock is not None
        refused = channel.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if refused:
            self._connect(job, channel, os.strerror(refused))
            return
        channel.connected = True
        channel.quiet_ticks = 0
        self._watch(job, channel)

    def _watch(self, job: _Job, channel: _Channel) -> None:
        if channel.sock is not None:
            events = selectors.EVENT_READ if channel.writer.idle else selectors.EVENT_READ | selectors.EVENT_WRITE
            self._loop.watch(channel.sock, events, lambda mask: self._on_ready(job, channel, mask))

    def _on_ready(self, job: _Job, channel: _Channel, mask: int) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                channel.send_pages()
            if mask & selectors.EVENT_READ or channel.broken:
                channel.receive_verdict()
        except TransferFault as fault:
            if fault.failure is Failure.UNSHARED and channel.path is not None:
                self._connect(job, channel, fault.detail)
            else:
                if isinstance(fault, DeviceFault):
                    log.error("while sending KV pages: %s", fault.detail)
                self._fail(job.id, fault)
        except Exception:
            log.exception("bug while sending KV pages")
            self._fail(job.id, TransferFault(Failure.INTERNAL, "see the log"))
        else:
            if channel.verified:
                self._disconnect(channel)
                self._settle(job)
            else:
                self._watch(job, channel)

    def _fail(self, job_id: str, fault: TransferFault) -> None:
        job = self._jobs.get(job_id)
        if job is not None:
            job.fault = fault
            self._settle(job)

    def _settle(self, job: _Job) -> None:
        """Report the job if it has ended."""
        if job.fault is None and not (job.finished and all(c.verified for c in job.channels)):
            return
        del self._jobs[job.id]
        for channel in job.channels:
            self._disconnect(channel)
            channel.closed = True
            channel.writer.drop()
        self._on_report(
            SendReport(
                job_id=job.id,
                ok=job.fault is None,
                error=job.fault.failure if job.fault else None,
                detail=job.fault.detail if job.fault else "",
                pages=len(job.queue),
                bytes=sum(channel.writer.payload_bytes for channel in job.channels),
            )
        )

    def _disconnect(self, channel: _Channel) -> None:
        if channel.sock is not None:
            self._loop.unwatch(channel.sock)
            channel.sock.close()
            channel.sock = None

    def _on_tick(self) -> None:
        for job in list(self._jobs.values()):
            for channel in job.channels:
                channel.quiet_ticks = 0 if channel.verified else channel.quiet_ticks + 1
                if channel.connected and channel.writer.idle and not channel.writer.done:
                    channel.writer.heartbeat()
                    self._watch(job, channel)
            quiet = next((c for c in job.channels if c.quiet_ticks > self._stall_ticks), None)
            if quiet is not None:
                self._fail(job.id, TransferFault(Failure.STALLED, f"{quiet.name} takes no bytes"))

    def _shut_down(self) -> None:
        for job_id in list(self._jobs):
            self._fail(job_id, TransferFault(Failure.SHUTDOWN, "the sender stopped"))


class _Job:
    def __init__(self, spec: SendJob) -> None:
        self.spec = spec
        self.id = spec.job_id
        self.queue: list[tuple[int, int]] = []
        self.channels: list[_Channel] = []
        self.finished = False
        self.fault: TransferFault | None = None


class _Channel:
    """This rank's stream to one receiver rank."""

    def __init__(self, name: str, port: int, path: str | None, make_writer: Callable[[bool], StreamWriter]) -> None:
        """`path`: the Unix socket to try first; `make_writer`: takes whether it goes there."""
        self.name = name
        self.port = port
        self.path = path
        self.writer = make_writer(path is not None)
        self.ancillary: list[tuple[int, int, bytes]] = []
        """Descriptors that go with the next byte."""
        self._make_writer = make_writer
        self.addresses: list[tuple[int, Any]] = []
        """(family, address) still to be tried."""
        self.sock: socket.socket | None = None
        self.connected = False
        self.broken = False
        """The receiver takes no more; it may have said why."""
        self.verified = False
        self.closed = False
        self.quiet_ticks = 0
        self._verdict = bytearray()

    def leave_unix(self) -> None:
        """From the beginning again, over TCP."""
        self.path = None
        self.writer.drop()
        self.writer = self._make_writer(False)
        self.ancillary.clear()
        self.connected = self.broken = False
        self._verdict.clear()

    def send_pages(self) -> None:
        """What the socket takes, up to a turn's share."""
        assert self.sock is not None
        budget = wire.TURN_BYTES
        try:
            while budget > 0 and (buffers := self.writer.buffers()):
                count = self.sock.sendmsg(buffers, self.ancillary)
                self.ancillary.clear()
                self.quiet_ticks = 0
                self.writer.advance(count)
                budget -= count
        except BlockingIOError:
            pass
        except OSError:
            self.broken = True

    def receive_verdict(self) -> None:
        """Sets `verified`. Raises `TransferFault` when the receiver refused the stream or is gone."""
        assert self.sock is not None
        why = "closed the connection"
        try:
            while data := self.sock.recv(wire.MAX_VERDICT_BYTES):
                self.quiet_ticks = 0
                self._verdict += data if self._verdict else data.lstrip(wire.PROGRESS)
                if len(self._verdict) > wire.MAX_VERDICT_BYTES:
                    raise TransferFault(Failure.PROTOCOL, f"{self.name} talks too much")
        except BlockingIOError:
            if not self.broken:
                return
        except OSError as error:
            why = error.strerror or str(error)
        verdict = wire.unpack_verdict(self._verdict)
        if verdict is None:
            raise TransferFault(Failure.DISCONNECTED, f"{self.name} {why}")
        if verdict.failure is not None:
            raise TransferFault(verdict.failure, f"{self.name}: {verdict.detail}")
        if not self.writer.done:
            raise TransferFault(Failure.PROTOCOL, f"{self.name} verified pages it was not sent")
        self.verified = True
