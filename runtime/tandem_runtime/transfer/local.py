"""The in-process transport: for tests, and for one process that plays both roles. Copies between memories, no sockets.

Keeps the promises of `protocol` the simple way: a `LocalFabric` owns one thread, and everything happens on it in order.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import xxhash

from tandem_runtime.transfer.ledger import FragmentHeader, Hello, IncomingJob, IncomingStream
from tandem_runtime.transfer.memory import PageSink, PageSource
from tandem_runtime.transfer.plan import byte_range, layout_digest, peer_layout, receivers_of
from tandem_runtime.transfer.protocol import (
    Failure,
    OnReceive,
    OnSend,
    ReceiveJob,
    SendJob,
    SendReport,
    TransferFault,
)

log = logging.getLogger(__name__)

OnFault = Callable[[TransferFault], None]


class LocalFabric:
    """What connects the receivers and senders of one process."""

    def __init__(self) -> None:
        self.receivers: dict[int, LocalReceiver] = {}
        self.ports = itertools.count(1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-local")

    def call(self, work: Callable[[], None]) -> Future[None]:
        """Run `work` on the fabric's thread, after everything called before."""

        def guarded() -> None:
            try:
                work()
            except Exception:
                log.exception("bug in the local transport")

        return self._thread.submit(guarded)

    def stop(self) -> None:
        self._thread.shutdown()


class LocalReceiver:
    """A `PageReceiver`."""

    def __init__(self, fabric: LocalFabric, sink: PageSink, on_report: OnReceive) -> None:
        self._fabric = fabric
        self._sink = sink
        self._on_report = on_report
        self._jobs: dict[str, _Receiving] = {}
        self._port = next(fabric.ports)
        fabric.receivers[self._port] = self

    @property
    def port(self) -> int:
        return self._port

    def open(self, job: ReceiveJob) -> None:
        receiving = _Receiving(IncomingJob(job, self._sink.layout, self._sink.rank))
        self._fabric.call(lambda: self._open(receiving))

    def close(self, job_id: str, reason: str) -> None:
        self._fabric.call(lambda: self.fail(job_id, TransferFault(Failure.CANCELLED, reason)))

    def stop(self) -> None:
        self._fabric.call(self._shut_down).result()

    def connect(self, hello: Hello, on_fault: OnFault) -> IncomingStream:
        """Raises `TransferFault`. `on_fault` is called if the job fails. Fabric's thread, as are the methods below."""
        receiving = self._jobs.get(hello.job_id)
        if receiving is None or not receiving.incoming.authentic(hello):
            raise TransferFault(Failure.REJECTED, "unknown job or wrong token")
        receiving.on_fault.append(on_fault)
        try:
            return receiving.incoming.claim(hello)
        except TransferFault as fault:
            self.fail(hello.job_id, fault)
            raise

    def deliver(self, job_id: str, stream: IncomingStream, header: FragmentHeader, payload: memoryview) -> None:
        receiving = self._jobs.get(job_id)
        if receiving is None:
            return
        try:
            page_id = stream.expect(header)
            sent = xxhash.xxh3_64_intdigest(payload)
            landing = self._sink.incoming(page_id, stream.heads)
            landing[:] = payload
            try:
                stream.verify(header.index, sent, xxhash.xxh3_64_intdigest(landing))
            except TransferFault:
                self._sink.dropped(page_id, stream.heads)
                raise
            self._sink.landed(page_id, stream.heads)
        except TransferFault as fault:
            self.fail(job_id, fault)
        else:
            self._settle(receiving)

    def fail(self, job_id: str, fault: TransferFault) -> None:
        receiving = self._jobs.get(job_id)
        if receiving is not None:
            receiving.fault = fault
            self._settle(receiving)

    def _open(self, receiving: _Receiving) -> None:
        self._jobs[receiving.incoming.job.job_id] = receiving
        self._settle(receiving)

    def _settle(self, receiving: _Receiving) -> None:
        incoming, fault = receiving.incoming, receiving.fault
        if fault is None and not incoming.complete:
            return
        del self._jobs[incoming.job.job_id]
        self._on_report(incoming.report(fault))
        if fault is not None:
            for tell in receiving.on_fault:
                tell(fault)

    def _shut_down(self) -> None:
        self._fabric.receivers.pop(self._port, None)
        for job_id in list(self._jobs):
            self.fail(job_id, TransferFault(Failure.SHUTDOWN, "the receiver stopped"))


@dataclass(eq=False)
class _Receiving:
    incoming: IncomingJob
    on_fault: list[OnFault] = field(default_factory=list)
    fault: TransferFault | None = None


class LocalSender:
    """A `PageSender`."""

    def __init__(self, fabric: LocalFabric, source: PageSource, on_report: OnSend) -> None:
        self._fabric = fabric
        self._source = source
        self._on_report = on_report
        self._digest = layout_digest(source.layout)
        self._jobs: dict[str, _Sending] = {}

    def open(self, job: SendJob) -> None:
        receiver = peer_layout(self._source.layout, len(job.data_ports))
        routes = receivers_of(self._source.layout, self._source.rank, receiver) if job.slots else {}
        self._fabric.call(lambda: self._open(_Sending(job), routes))

    def send(self, job_id: str, first_index: int, page_ids: list[int]) -> None:
        pages = list(enumerate(page_ids, first_index))
        self._fabric.call(lambda: self._send(job_id, pages))

    def finish(self, job_id: str) -> None:
        self._fabric.call(lambda: self._finish(job_id))

    def abort(self, job_id: str, reason: str) -> None:
        self._fabric.call(lambda: self._fail(job_id, TransferFault(Failure.CANCELLED, reason)))

    def stop(self) -> None:
        self._fabric.call(self._shut_down).result()

    def _open(self, sending: _Sending, routes: dict[int, range]) -> None:
        job = sending.job
        self._jobs[job.job_id] = sending
        for rank, heads in routes.items():
            receiver = self._fabric.receivers.get(job.data_ports[rank])
            if receiver is None:
                self._fail(job.job_id, TransferFault(Failure.UNREACHABLE, f"no receiver rank {rank}"))
                return
            hello = Hello(
                job_id=job.job_id,
                data_token=job.data_token,
                sender_rank=self._source.rank,
                sender_tp=self._source.layout.tensor_parallel,
                receiver_rank=rank,
                layout=self._digest,
            )
            try:
                stream = receiver.connect(hello, lambda fault: self._fail(job.job_id, fault))
            except TransferFault as fault:
                self._fail(job.job_id, fault)
                return
            layout = peer_layout(self._source.layout, len(job.data_ports))
            sending.links.append(_Link(receiver, stream, heads, byte_range(layout, rank, heads)[0]))

    def _send(self, job_id: str, pages: list[tuple[int, int]]) -> None:
        sending = self._jobs.get(job_id)
        if sending is None:
            return
        if not all(0 <= index < len(sending.job.slots) for index, _ in pages):
            self._fail(job_id, TransferFault(Failure.PROTOCOL, f"pages beyond the {len(sending.job.slots)} slots"))
            return
        for index, page_id in pages:
            if job_id not in self._jobs:
                return  # the receiver refused a page
            sending.sent += 1
            for link in sending.links:
                payload = self._source.outgoing(page_id, link.heads)
                header = FragmentHeader(index, sending.job.slots[index][1], link.offset, len(payload))
                sending.bytes += len(payload)
                link.receiver.deliver(job_id, link.stream, header, payload)
                self._source.sent(page_id, link.heads)

    def _finish(self, job_id: str) -> None:
        sending = self._jobs.get(job_id)
        if sending is None:
            return
        if sending.sent != len(sending.job.slots):
            detail = f"finished after {sending.sent} of {len(sending.job.slots)} pages"
            self._fail(job_id, TransferFault(Failure.PROTOCOL, detail))
            return
        self._end(sending, None)

    def _fail(self, job_id: str, fault: TransferFault) -> None:
        sending = self._jobs.get(job_id)
        if sending is not None:
            self._end(sending, fault)

    def _end(self, sending: _Sending, fault: TransferFault | None) -> None:
        job_id = sending.job.job_id
        del self._jobs[job_id]
        for link in sending.links:
            if not link.stream.complete:
                detail = f"sender rank {self._source.rank} left"
                link.receiver.fail(job_id, TransferFault(Failure.DISCONNECTED, detail))
        self._on_report(sending.report(fault))

    def _shut_down(self) -> None:
        for job_id in list(self._jobs):
            self._fail(job_id, TransferFault(Failure.SHUTDOWN, "the sender stopped"))


@dataclass(eq=False)
class _Link:
    receiver: LocalReceiver
    stream: IncomingStream
    heads: range
    offset: int


@dataclass(eq=False)
class _Sending:
    job: SendJob
    links: list[_Link] = field(default_factory=list)
    sent: int = 0
    bytes: int = 0

    def report(self, fault: TransferFault | None) -> SendReport:
        return SendReport(
            job_id=self.job.job_id,
            ok=fault is None,
            error=fault.failure if fault else None,
            detail=fault.detail if fault else "",
            pages=self.sent,
            bytes=self.bytes,
        )
