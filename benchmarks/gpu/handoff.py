"""KV pages of Qwen3-32B's shape from one process to another on one card, by CUDA IPC and by TCP from pinned memory.

    python benchmarks/gpu/handoff.py [--mib 2048] [--rounds 5] [--device cuda]

Checksums included; a page's bytes are counted once. `of copy`: over the rate of a plain copy on the card in this run,
`of pinned`: over that of one copy to pinned memory and one back. Prints a JSON line a way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial

import torch
from kv_transfer import SHAPES, Pages, Pipe, Run, receive_pages, send_pages
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.engine.shared_cache import import_into, shared_cache
from tandem_runtime.transfer.cuda import CudaCopyEngine
from tandem_runtime.transfer.ipc.export import IpcExport
from tandem_runtime.transfer.ipc.reads import IpcReads
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.staging import StagedPages


def main() -> None:
    args = _arguments()
    layout = SHAPES["Qwen3-32B"]
    pages = (args.mib << 20) // layout.page_bytes
    cache_B = torch.zeros(pages * layout.page_bytes, dtype=torch.uint8, device=args.device)
    host_B = torch.zeros(cache_B.shape, dtype=torch.uint8, pin_memory=args.device == "cuda")
    copy = _copy_rate([(torch.empty_like(cache_B), cache_B)])
    pinned = _copy_rate([(host_B, cache_B), (cache_B, host_B)])
    del host_B
    for transport in ("ipc", "tcp"):
        receive = partial(_receive, cache_B, transport)
        run = Run(receive, partial(_send, args.device, transport), _pages(cache_B, layout), pages, args.rounds + 1)
        for _ in range(args.rounds + 1):
            run.round()
        rates = run.measured().rates
        assert bool((cache_B == _mark(transport)).all()), "other bytes than were sent"
        median = statistics.median(rates)
        found = {"transport": transport, "GB/s": round(median, 2), "best GB/s": round(max(rates), 2)}
        ratios = {"of copy": round(median / copy, 3), "of pinned": round(median / pinned, 3)}
        print(json.dumps(found | ratios), flush=True)


def _receive(cache_B: torch.Tensor, transport: str, pipe: Pipe, sink: Pages, rounds: int) -> Iterator[float]:
    if transport == "tcp":
        yield from receive_pages(pipe, sink, rounds, None)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/kv"
        yield from receive_pages(pipe, sink, rounds, None, IpcReads(import_into(cache_B, sink), path), path)


def _send(device: str, transport: str, pipe: Pipe, layout: KVLayout, pages: int, rounds: int) -> None:
    shared = shared_cache(device, 0)
    cache_B = shared.allocate(pages * layout.page_bytes).fill_(_mark(transport))
    _synchronize(cache_B)
    export = IpcExport(shared.export(layout, 0)) if transport == "ipc" else None
    send_pages(pipe, _pages(cache_B, layout), rounds, None, export)


def _mark(transport: str) -> int:
    """What its sender's pages are full of."""
    return len(transport) + ord(transport[0])


def _pages(cache_B: torch.Tensor, layout: KVLayout) -> Pages:
    if cache_B.device.type == "cpu":
        return PageMemory(cache_B.numpy().data, layout, rank=0)
    return StagedPages(CudaCopyEngine(cache_B), layout, 0, cache_B.numel() // layout.page_bytes)


def _copy_rate(copies: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """GB/s of as many bytes as one of the tensors has, taken through all `copies`."""
    seconds = []
    for _ in range(4):
        _synchronize(copies[0][1])
        began = time.perf_counter()
        for target, source in copies:
            target.copy_(source)
        _synchronize(copies[0][1])
        seconds.append(time.perf_counter() - began)
    return copies[0][0].nbytes / min(seconds) * 1e-9


def _synchronize(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
