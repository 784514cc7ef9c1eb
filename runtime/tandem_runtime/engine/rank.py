"""One tensor-parallel rank: its shard of the model, its KV pages, and the transports that move them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch

from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine.shared_cache import import_into, shared_cache
from tandem_runtime.engine.transfers import LocalTransfers
from tandem_runtime.execution.constraints import Constraints
from tandem_runtime.execution.graphs import CudaCapture
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.execution.streams import step_stream
from tandem_runtime.transfer.cuda import CudaCopyEngine
from tandem_runtime.transfer.ipc.export import IpcExport
from tandem_runtime.transfer.ipc.reads import IpcReads
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.nixl.agent import NixlAgent, Region
from tandem_runtime.transfer.nixl.export import NixlExport
from tandem_runtime.transfer.nixl.reads import NixlReads
from tandem_runtime.transfer.protocol import NIXL, ReceiveReport, SendReport
from tandem_runtime.transfer.staging import StagedPages
from tandem_runtime.transfer.tcp import TcpReceiver, TcpSender

OnReport = Callable[[ReceiveReport | SendReport], None]
OnLoad = Callable[[int, int], None]
"""Called with the bytes of weights read so far, and in all."""


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how a rank takes and gives KV pages."""

    host: str
    port: int
    """0: any free one."""
    nixl: bool = False
    ipc_path: str = ""
    """Unix socket at which it takes pages of processes on its machine; empty for one that takes none."""
    shares: bool = False
    """Its KV cache is to be in memory that such processes can map."""


class Rank:
    def __init__(self, runner: ModelRunner, transfers: LocalTransfers | None) -> None:
        self.runner = runner
        self.transfers = transfers

    @classmethod
    def load(
        cls,
        config: ExecutionConfig,
        rank: int,
        *,
        listen: Listen | None,
        on_report: OnReport,
        on_load: OnLoad = lambda done, total: None,
        constraints: Constraints | None = None,
    ) -> Rank:
        """Loads the shard; opens the transports at `listen` unless it is None. Raises `StartupError`.

        `constraints`: for rank 0 of a pod that samples.
        """
        if config.device == "cuda":
            # Both of the calling thread, which is the one that launches.
            torch.cuda.set_device(rank)
            torch.cuda.set_stream(step_stream())
        shared = shared_cache(config.device, rank) if listen and listen.shares else None
        runner = ModelRunner(
            config,
            rank=rank,
            world=config.tensor_parallel_size,
            constraints=constraints,
            allocate=shared.allocate if shared else None,
        )
        runner.load(on_load)
        runner.warm_up()
        if config.device == "cuda" and config.cuda_graphs:
            runner.capture_graphs(CudaCapture())
        if listen is None:
            return cls(runner, None)
        source, sink = _pages(runner, rank), _pages(runner, rank)
        reads, export = None, None
        if listen.nixl:
            agent = NixlAgent()
            reads = NixlReads(agent, runner.layout.page_bytes)
            export = NixlExport(agent, _region(runner.kv_bytes()), source)
        ipc_reads = IpcReads(import_into(runner.kv_bytes(), sink), listen.ipc_path) if listen.ipc_path else None
        ipc_export = IpcExport(shared.export(runner.layout, rank)) if shared else None
        try:
            receiver = TcpReceiver(sink, on_report, host=listen.host, port=listen.port, nixl=reads, ipc=ipc_reads)
        except OSError as error:
            address = f"{listen.host}:{listen.port}"
            raise StartupError(f"--kv-data-port: cannot listen on {address}: {error.strerror}") from error
        sender = TcpSender(source, on_report, nixl=export, ipc=ipc_export)
        transports = [NIXL] if listen.nixl else []
        return cls(runner, LocalTransfers(receiver, sender, transports, listen.ipc_path))

    def close(self) -> None:
        if self.transfers is not None:
            self.transfers.close()


def _region(cache: torch.Tensor) -> Region:
    on_host = cache.device.type == "cpu"
    return Region(cache.data_ptr(), cache.nbytes, "DRAM" if on_host else "VRAM", 0 if on_host else cache.get_device())


def _pages(runner: ModelRunner, rank: int) -> PageMemory | StagedPages:
    """The rank's KV cache as one transport sees it."""
    cache = runner.kv_bytes()
    if cache.device.type == "cpu":
        return PageMemory(cache.numpy().data, runner.layout, rank)
    return StagedPages(CudaCopyEngine(cache), runner.layout, rank, runner.num_pages)
