"""Both ends of a handoff for the transfer tests: real memories, real transports, reports gathered per job."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.local import LocalFabric, LocalReceiver, LocalSender
from tandem_runtime.transfer.memory import PageMemory, PageSink, PageSource
from tandem_runtime.transfer.nixl.agent import NixlAgent, dram
from tandem_runtime.transfer.nixl.export import NixlExport
from tandem_runtime.transfer.nixl.reads import MAX_SLOTS, NixlReads
from tandem_runtime.transfer.protocol import (
    NIXL,
    OnReceive,
    OnSend,
    PageReceiver,
    PageSender,
    ReceiveJob,
    ReceiveReport,
    SendJob,
    SendReport,
)
from tandem_runtime.transfer.staging import Block, StagedPages
from tandem_runtime.transfer.tcp import TcpReceiver, TcpSender

TOKEN = "data-token"
WAIT_S = 20


def layout(heads: int = 4, tp: int = 1, head_dim: int = 8) -> KVLayout:
    return KVLayout(
        num_layers=2, num_kv_heads=heads, head_dim=head_dim, page_size=4, dtype="float16", tensor_parallel=tp
    )


class WatchedMemory:
    """Tells the test when a fragment has landed."""

    def __init__(self, sink: PageSink, zone: memoryview) -> None:
        """`zone`: the memory itself."""
        self.layout, self.rank, self.num_pages = sink.layout, sink.rank, sink.num_pages
        self.zone = zone
        self._sink = sink
        self.landings: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.open_views = 0

    def incoming(self, page_id: int, heads: range) -> memoryview:
        self.open_views += 1
        return self._sink.incoming(page_id, heads)

    def landed(self, page_id: int, heads: range) -> None:
        self._sink.landed(page_id, heads)
        self.open_views -= 1
        self.landings.put(page_id)

    def dropped(self, page_id: int, heads: range) -> None:
        self._sink.dropped(page_id, heads)
        self.open_views -= 1


class HostBlock:
    def __init__(self, num_bytes: int) -> None:
        self.view = memoryview(bytearray(b"?" * num_bytes))


class HostCopyEngine:
    """A device whose memory happens to be the host's. A block that was copied is overwritten when it is used again."""

    def __init__(self, cache: memoryview) -> None:
        self._cache = cache.cast("B")
        self.blocks = 0

    def block(self, num_bytes: int) -> HostBlock:
        self.blocks += 1
        return HostBlock(num_bytes)

    def down(self, offset: int, num_bytes: int, block: Block) -> None:
        block.view[:num_bytes] = self._cache[offset : offset + num_bytes]

    def up(self, block: Block, offset: int, num_bytes: int) -> None:
        self._cache[offset : offset + num_bytes] = block.view[:num_bytes]
        block.view[:] = b"?" * len(block.view)


Memory = PageMemory | StagedPages


def staged(pages: memoryview, layout: KVLayout, rank: int) -> StagedPages:
    return StagedPages(HostCopyEngine(pages), layout, rank, pages.nbytes // layout.page_bytes)


class Reports:
    """Collects one report per job and rank; a second one for the same is an error."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self.seen: dict[tuple[str, int], Any] = {}

    def of_rank(self, rank: int) -> Callable[[Any], None]:
        return lambda report: self._queue.put((rank, report))

    def wait(self, job_id: str, rank: int = 0) -> Any:
        while (job_id, rank) not in self.seen:
            self._take(self._queue.get(timeout=WAIT_S))
        return self.seen[job_id, rank]

    def silent_for(self, seconds: float) -> bool:
        """Whether no report comes in that time."""
        try:
            self._take(self._queue.get(timeout=seconds))
        except queue.Empty:
            return True
        return False

    def drain(self) -> None:
        while not self._queue.empty():
            self._take(self._queue.get())

    def _take(self, item: tuple[int, Any]) -> None:
        rank, report = item
        assert (report.job_id, rank) not in self.seen, f"reported twice: {report}"
        self.seen[report.job_id, rank] = report


class Rig:
    """Sender ranks with random pages, receiver ranks with zeroed ones."""

    def __init__(
        self,
        make_receiver: Callable[[PageSink, OnReceive], PageReceiver],
        make_sender: Callable[[PageSource, OnSend, memoryview], PageSender],
        *,
        memory: Callable[[memoryview, KVLayout, int], Memory] = PageMemory,
        sender_tp: int = 1,
        receiver_tp: int = 1,
        heads: int = 4,
        pages: int = 12,
        head_dim: int = 8,
        transports: Sequence[str] = (),
    ) -> None:
        self.source_layout = layout(heads, sender_tp, head_dim)
        self.sink_layout = layout(heads, receiver_tp, head_dim)
        head_bytes = self.source_layout.head_bytes
        self.truth = np.random.default_rng(0).integers(1, 256, (pages, heads, head_bytes), dtype=np.uint8)
        self.transports = list(transports)
        self.ipc_paths: list[str] = []
        self.received = Reports()
        self.sent = Reports()
        self.senders: list[PageSender] = []
        for rank in range(sender_tp):
            held = self.source_layout.heads_of_rank(rank)
            mine = np.ascontiguousarray(self.truth[:, held.start : held.stop])
            cache = memoryview(mine)  # type: ignore[arg-type]
            source = memory(cache, self.source_layout, rank)
            self.senders.append(make_sender(source, self.sent.of_rank(rank), cache))
        self.sinks: list[WatchedMemory] = []
        self.landing_zones: list[Any] = []
        self.receivers: list[PageReceiver] = []
        for rank in range(receiver_tp):
            zone = np.zeros((pages, self.sink_layout.heads_per_rank, head_bytes), dtype=np.uint8)
            landing = memoryview(zone)  # type: ignore[arg-type]
            sink = WatchedMemory(memory(landing, self.sink_layout, rank), landing)
            self.landing_zones.append(zone)
            self.sinks.append(sink)
            self.receivers.append(make_receiver(sink, self.received.of_rank(rank)))

    def open(self, job_id: str, slots: list[tuple[int, int]], ports: list[int] | None = None) -> None:
        """Both ends, all ranks."""
        self.open_receivers(job_id, slots)
        self.open_senders(job_id, slots, ports)

    def open_receivers(self, job_id: str, slots: list[tuple[int, int]]) -> None:
        job = ReceiveJob(job_id=job_id, data_token=TOKEN, sender_tp=self.source_layout.tensor_parallel, slots=slots)
        for receiver in self.receivers:
            receiver.open(job)

    def open_senders(
        self, job_id: str, slots: list[tuple[int, int]], ports: list[int] | None = None, host: str = "127.0.0.1"
    ) -> None:
        ipc_paths = [] if ports else self.ipc_paths
        ports = ports or [receiver.port for receiver in self.receivers]
        job = SendJob(
            job_id=job_id,
            data_token=TOKEN,
            host=host,
            data_ports=ports,
            slots=slots,
            transports=self.transports,
            ipc_paths=ipc_paths,
        )
        for sender in self.senders:
            sender.open(job)

    def send(self, job_id: str, first_index: int, page_ids: list[int]) -> None:
        for sender in self.senders:
            sender.send(job_id, first_index, page_ids)

    def finish(self, job_id: str) -> None:
        for sender in self.senders:
            sender.finish(job_id)

    def receive_reports(self, job_id: str) -> list[ReceiveReport]:
        return [self.received.wait(job_id, rank) for rank in range(len(self.receivers))]

    def send_reports(self, job_id: str) -> list[SendReport]:
        return [self.sent.wait(job_id, rank) for rank in range(len(self.senders))]

    def assert_moved(self, pairs: list[tuple[int, int]]) -> None:
        """Each (source page, sink page) is equal on every receiver rank."""
        for rank, zone in enumerate(self.landing_zones):
            held = self.sink_layout.heads_of_rank(rank)
            for source, sink in pairs:
                np.testing.assert_array_equal(zone[sink], self.truth[source, held.start : held.stop])

    def assert_zero(self, sink_pages: list[int]) -> None:
        for zone in self.landing_zones:
            assert not zone[sink_pages].any()

    def stop(self) -> None:
        for sender in self.senders:
            sender.stop()
        for receiver in self.receivers:
            receiver.stop()
        self.sent.drain()
        self.received.drain()
        assert all(sink.open_views == 0 for sink in self.sinks)


def tcp_rig(stall_timeout_s: float = 10.0, **shape: Any) -> Rig:
    return Rig(
        lambda sink, report: TcpReceiver(sink, report, host="127.0.0.1", stall_timeout_s=stall_timeout_s),
        lambda source, report, _: TcpSender(source, report, stall_timeout_s=stall_timeout_s),
        **shape,
    )


class NixlAgents:
    """Agents take half a second to make and may be used again: one exports for all senders, each receiver has one."""

    def __init__(self) -> None:
        self._exporting = NixlAgent()
        self._idle: list[NixlAgent] = []

    def rig(self, stall_timeout_s: float = 10.0, **shape: Any) -> NixlRig:
        return NixlRig(self._exporting, self._idle, stall_timeout_s, **shape)


class NixlRig(Rig):
    def __init__(
        self,
        exporting: NixlAgent,
        idle: list[NixlAgent],
        stall_timeout_s: float,
        max_slots: int = MAX_SLOTS,
        **shape: Any,
    ) -> None:
        self._idle, self._taken = idle, list[NixlAgent]()

        def receiver(sink: PageSink, report: OnReceive) -> PageReceiver:
            self._taken.append(idle.pop() if idle else NixlAgent())
            reads = NixlReads(self._taken[-1], sink.layout.page_bytes, max_slots)
            return TcpReceiver(sink, report, host="127.0.0.1", stall_timeout_s=stall_timeout_s, nixl=reads)

        def sender(source: PageSource, report: OnSend, cache: memoryview) -> PageSender:
            export = NixlExport(exporting, dram(cache), source)
            return TcpSender(source, report, stall_timeout_s=stall_timeout_s, nixl=export)

        super().__init__(receiver, sender, transports=[NIXL], **shape)

    def stop(self) -> None:
        super().stop()
        self._idle += self._taken
        self._taken.clear()


def local_rig(fabric: LocalFabric, **shape: int) -> Rig:
    return Rig(
        lambda sink, report: LocalReceiver(fabric, sink, report),
        lambda source, report, _: LocalSender(fabric, source, report),
        **shape,
    )
