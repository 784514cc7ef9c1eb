"""Moves KV pages between two processes on loopback over a transport and over plain sockets.

    python benchmarks/kv_transfer.py [--mib 256] [--rounds 7] [--transport tcp ipc nixl]

All in turns, so that a busy machine is equally busy for each. Prints GB/s (median and best), the ratio of medians to
plain sockets, the receiver's CPU time (steadier than GB/s) and how much the receiving process grew.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing as mp
import queue
import resource
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.ipc.export import IpcExport
from tandem_runtime.transfer.ipc.host import HostExport, HostImport, SharedMemory
from tandem_runtime.transfer.ipc.reads import IpcReads
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.nixl.agent import NixlAgent, dram
from tandem_runtime.transfer.nixl.export import NixlExport
from tandem_runtime.transfer.nixl.reads import NixlReads
from tandem_runtime.transfer.protocol import NIXL, ReceiveJob, ReceiveReport, SendJob, SendReport
from tandem_runtime.transfer.staging import StagedPages
from tandem_runtime.transfer.tcp import TcpReceiver, TcpSender

SHAPES = {
    "SmolLM2-135M": KVLayout(num_layers=30, num_kv_heads=3, head_dim=64, page_size=16, dtype="bfloat16"),
    "Qwen3-32B": KVLayout(num_layers=64, num_kv_heads=8, head_dim=128, page_size=16, dtype="bfloat16"),
}
Pipe = Any
"""`Connection` has different type parameters on different Pythons."""
Pages = PageMemory | StagedPages
Receive = Callable[[Pipe, Any, int], Iterator[float]]
"""Of the pipe, where pages land (`Pages`), and the number of rounds."""
Send = Callable[[Pipe, KVLayout, int, int], None]
CHUNK_PAGES = 16
"""Pages queued at once, as a prefill chunk would."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--transport", nargs="+", choices=TRANSPORTS, default=["tcp"])
    args = parser.parse_args()
    print(f"{'':24}{'median GB/s':>12}{'best GB/s':>12}{'of sockets':>12}{'CPU s/GB':>12}{'RSS growth':>12}")
    for name, layout in SHAPES.items():
        pages = (args.mib << 20) // layout.page_bytes
        ways = [TRANSPORTS[transport] for transport in args.transport]
        plain, *measured = in_turns(layout, pages, args.rounds, (receive_plain, send_plain), *ways)
        report(f"{name} sockets", plain, plain)
        for transport, its in zip(args.transport, measured, strict=True):
            report(f"{name} {transport}", its, plain)


class Measured(NamedTuple):
    rates: list[float]
    """GB/s of each round."""
    cpu: float
    """The receiver's seconds per GB, user and system."""
    growth: int
    """Of the receiver's resident memory over the rounds, bytes."""


def report(name: str, measured: Measured, plain: Measured) -> None:
    median = statistics.median(measured.rates)
    ratio = median / statistics.median(plain.rates)
    growth = f"{measured.growth / 2**20:.1f} MiB"
    print(f"{name:24}{median:12.2f}{max(measured.rates):12.2f}{ratio:12.2f}{measured.cpu:12.2f}{growth:>12}")


def in_turns(layout: KVLayout, pages: int, rounds: int, *ways: tuple[Receive, Send]) -> list[Measured]:
    """`rounds` transfers of `pages` pages each way, in turns, after one to warm up; each way's sender is a process."""
    memory = PageMemory(touched(layout, pages), layout, rank=0)
    runs = [Run(receive, send, memory, pages, rounds + 1) for receive, send in ways]
    for _ in range(rounds + 1):
        for run in runs:
            run.round()
    return [run.measured() for run in runs]


class Run:
    def __init__(self, receive: Receive, send: Send, memory: Pages, pages: int, rounds: int) -> None:
        context = mp.get_context("spawn")
        here, there = context.Pipe()
        self._process = context.Process(target=send, args=(there, memory.layout, pages, rounds), daemon=True)
        self._process.start()
        self._seconds = receive(here, memory, rounds)
        self._gigabytes = pages * memory.layout.page_bytes / 1e9
        self._rates: list[float] = []
        self._cpu: list[float] = []
        self._growth: list[int] = []

    def round(self) -> None:
        cpu, resident = usage()
        self._rates.append(self._gigabytes / next(self._seconds))
        self._cpu.append((usage()[0] - cpu) / self._gigabytes)
        self._growth.append(usage()[1] - resident)

    def measured(self) -> Measured:
        assert next(self._seconds, None) is None
        self._process.join()
        return Measured(self._rates[1:], statistics.median(self._cpu[1:]), sum(self._growth[1:]))


def usage() -> tuple[float, int]:
    """Of this process: CPU seconds, resident bytes."""
    times = resource.getrusage(resource.RUSAGE_SELF)
    return times.ru_utime + times.ru_stime, psutil.Process().memory_info().rss


def touched(layout: KVLayout, pages: int) -> memoryview:
    """Resident memory, as a KV cache is."""
    buffer = memoryview(mmap.mmap(-1, pages * layout.page_bytes))
    touch(buffer)
    return buffer


def touch(buffer: memoryview) -> None:
    for start in range(0, len(buffer), mmap.PAGESIZE):
        buffer[start] = start // mmap.PAGESIZE % 251


def receive_tcp(pipe: Pipe, memory: PageMemory, rounds: int) -> Iterator[float]:
    return receive_pages(pipe, memory, rounds, None)


def receive_nixl(pipe: Pipe, memory: PageMemory, rounds: int) -> Iterator[float]:
    return receive_pages(pipe, memory, rounds, NixlReads(NixlAgent(), memory.layout.page_bytes))


def receive_ipc(pipe: Pipe, memory: PageMemory, rounds: int) -> Iterator[float]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/kv"
        yield from receive_pages(pipe, memory, rounds, None, IpcReads(HostImport(memory), path), path)


def receive_pages(
    pipe: Pipe,
    memory: Pages,
    rounds: int,
    nixl: NixlReads | None,
    ipc: IpcReads | None = None,
    ipc_path: str = "",
) -> Iterator[float]:
    """Yields the seconds of each round."""
    reports: queue.SimpleQueue[ReceiveReport] = queue.SimpleQueue()
    receiver = TcpReceiver(memory, reports.put, host="127.0.0.1", nixl=nixl, ipc=ipc)
    slots = [(page, 1) for page in range(memory.num_pages)]
    for number in range(rounds):
        receiver.open(ReceiveJob(job_id=f"{number}", data_token="token", sender_tp=1, slots=slots))
        pipe.recv()
        start = time.perf_counter()
        pipe.send((receiver.port, ipc_path))
        done = reports.get()
        assert done.ok, done
        yield time.perf_counter() - start
    receiver.stop()


def send_tcp(pipe: Pipe, layout: KVLayout, pages: int, rounds: int) -> None:
    send_pages(pipe, PageMemory(touched(layout, pages), layout, rank=0), rounds, None)


def send_nixl(pipe: Pipe, layout: KVLayout, pages: int, rounds: int) -> None:
    cache = touched(layout, pages)
    memory = PageMemory(cache, layout, rank=0)
    send_pages(pipe, memory, rounds, NixlExport(NixlAgent(), dram(cache), memory))


def send_ipc(pipe: Pipe, layout: KVLayout, pages: int, rounds: int) -> None:
    shared = SharedMemory(pages * layout.page_bytes)
    touch(shared.view)
    memory = PageMemory(shared.view, layout, rank=0)
    send_pages(pipe, memory, rounds, None, IpcExport(HostExport(shared, memory)))


def send_pages(pipe: Pipe, memory: Pages, rounds: int, nixl: NixlExport | None, ipc: IpcExport | None = None) -> None:
    pages = memory.num_pages
    reports: queue.SimpleQueue[SendReport] = queue.SimpleQueue()
    sender = TcpSender(memory, reports.put, nixl=nixl, ipc=ipc)
    transports = [NIXL] if nixl else []
    slots = [(page, 1) for page in range(pages)]
    for number in range(rounds):
        pipe.send("ready")
        port, ipc_path = pipe.recv()
        job = f"{number}"
        spec = SendJob(
            job_id=job,
            data_token="token",
            host="127.0.0.1",
            data_ports=[port],
            slots=slots,
            transports=transports,
            ipc_paths=[ipc_path] if ipc_path else [],
        )
        sender.open(spec)
        for first in range(0, pages, CHUNK_PAGES):
            sender.send(job, first, list(range(first, min(pages, first + CHUNK_PAGES))))
        sender.finish(job)
        done = reports.get()
        assert done.ok, done
    sender.stop()


def receive_plain(pipe: Pipe, memory: PageMemory, rounds: int) -> Iterator[float]:
    heads = range(memory.layout.num_kv_heads)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(rounds):
            pipe.recv()
            start = time.perf_counter()
            pipe.send(listener.getsockname()[1])
            connection, _ = listener.accept()
            with connection:
                for page in range(memory.num_pages):
                    view = memory.incoming(page, heads)
                    while view:
                        view = view[connection.recv_into(view) :]
            yield time.perf_counter() - start


def send_plain(pipe: Pipe, layout: KVLayout, pages: int, rounds: int) -> None:
    memory = PageMemory(touched(layout, pages), layout, rank=0)
    for _ in range(rounds):
        pipe.send("ready")
        with socket.create_connection(("127.0.0.1", pipe.recv())) as connection:
            for page in range(pages):
                connection.sendall(memory.outgoing(page, range(layout.num_kv_heads)))


TRANSPORTS: dict[str, tuple[Receive, Send]] = {
    "tcp": (receive_tcp, send_tcp),
    "ipc": (receive_ipc, send_ipc),
    "nixl": (receive_nixl, send_nixl),
}

if __name__ == "__main__":
    main()
