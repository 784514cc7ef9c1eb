"""Moves KV pages between two processes on loopback over the TCP transport and over plain sockets.

    python benchmarks/kv_transfer.py [--mib 256] [--rounds 7]

Prints GB/s (median and best), the ratio to plain sockets of the same run, and how much the receiving process grew.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing as mp
import queue
import socket
import statistics
import time
from multiprocessing.connection import Connection

import psutil
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.protocol import ReceiveJob, ReceiveReport, SendJob, SendReport
from tandem_runtime.transfer.tcp import TcpReceiver, TcpSender

SHAPES = {
    "SmolLM2-135M": KVLayout(num_layers=30, num_kv_heads=3, head_dim=64, page_size=16, dtype="bfloat16"),
    "Qwen3-32B": KVLayout(num_layers=64, num_kv_heads=8, head_dim=128, page_size=16, dtype="bfloat16"),
}
CHUNK_PAGES = 16
"""Pages queued at once, as a prefill chunk would."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(f"{'':24}{'median GB/s':>12}{'best GB/s':>12}{'of sockets':>12}{'RSS growth':>12}")
    for name, layout in SHAPES.items():
        pages = (args.mib << 20) // layout.page_bytes
        plain = measure(receive_plain, send_plain, layout, pages, args.rounds)
        report(f"{name} sockets", plain, plain)
        report(f"{name} transfer", measure(receive_pages, send_pages, layout, pages, args.rounds), plain)


def report(name: str, measured: tuple[list[float], int], plain: tuple[list[float], int]) -> None:
    rates, growth = measured
    median, best = statistics.median(rates), max(rates)
    ratio = median / statistics.median(plain[0])
    print(f"{name:24}{median:12.2f}{best:12.2f}{ratio:12.2f}{growth / 2**20:8.1f} MiB")


def measure(receive, send, layout: KVLayout, pages: int, rounds: int) -> tuple[list[float], int]:  # type: ignore[no-untyped-def]
    """GB/s of each round but the first, and the receiver's growth over them in bytes."""
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=send, args=(there, layout, pages, rounds), daemon=True)
    process.start()
    memory = PageMemory(touched(layout, pages), layout, rank=0)
    rates, growth = receive(here, memory, rounds)
    process.join()
    return rates, growth


def touched(layout: KVLayout, pages: int) -> memoryview:
    """Resident memory, as a KV cache is."""
    buffer = memoryview(mmap.mmap(-1, pages * layout.page_bytes))
    for start in range(0, len(buffer), mmap.PAGESIZE):
        buffer[start] = start // mmap.PAGESIZE % 251
    return buffer


def receive_pages(pipe: Connection, memory: PageMemory, rounds: int) -> tuple[list[float], int]:
    reports: queue.SimpleQueue[ReceiveReport] = queue.SimpleQueue()
    receiver = TcpReceiver(memory, reports.put, host="127.0.0.1")
    slots = [(page, 1) for page in range(memory.num_pages)]
    rates, rss = [], [0]
    for number in range(rounds + 1):
        receiver.open(ReceiveJob(job_id=f"{number}", data_token="token", sender_tp=1, slots=slots))
        pipe.recv()
        start = time.perf_counter()
        pipe.send(receiver.port)
        done = reports.get()
        assert done.ok, done
        rates.append(done.bytes / (time.perf_counter() - start) / 1e9)
        rss.append(psutil.Process().memory_info().rss)
    receiver.stop()
    return rates[1:], rss[-1] - rss[1]


def send_pages(pipe: Connection, layout: KVLayout, pages: int, rounds: int) -> None:
    memory = PageMemory(touched(layout, pages), layout, rank=0)
    reports: queue.SimpleQueue[SendReport] = queue.SimpleQueue()
    sender = TcpSender(memory, reports.put)
    slots = [(page, 1) for page in range(pages)]
    for number in range(rounds + 1):
        pipe.send("ready")
        port = pipe.recv()
        job = f"{number}"
        sender.open(SendJob(job_id=job, data_token="token", host="127.0.0.1", data_ports=[port], slots=slots))
        for first in range(0, pages, CHUNK_PAGES):
            sender.send(job, first, list(range(first, min(pages, first + CHUNK_PAGES))))
        sender.finish(job)
        assert reports.get().ok
    sender.stop()


def receive_plain(pipe: Connection, memory: PageMemory, rounds: int) -> tuple[list[float], int]:
    heads = range(memory.layout.num_kv_heads)
    rates, rss = [], [0]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(rounds + 1):
            pipe.recv()
            start = time.perf_counter()
            pipe.send(listener.getsockname()[1])
            connection, _ = listener.accept()
            for page in range(memory.num_pages):
                view = memory.incoming(page, heads)
                while view:
                    view = view[connection.recv_into(view) :]
            rates.append(memory.num_pages * memory.layout.page_bytes / (time.perf_counter() - start) / 1e9)
            rss.append(psutil.Process().memory_info().rss)
            connection.close()
    return rates[1:], rss[-1] - rss[1]


def send_plain(pipe: Connection, layout: KVLayout, pages: int, rounds: int) -> None:
    memory = PageMemory(touched(layout, pages), layout, rank=0)
    for _ in range(rounds + 1):
        pipe.send("ready")
        with socket.create_connection(("127.0.0.1", pipe.recv())) as connection:
            for page in range(pages):
                connection.sendall(memory.outgoing(page, range(layout.num_kv_heads)))


if __name__ == "__main__":
    main()
