"""One tensor-parallel rank: its shard of the model, its KV pages, and the transports that move them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tandem_runtime.core.errors import StartupError
from tandem_runtime.engine.transfers import LocalTransfers
from tandem_runtime.execution.constraints import Constraints
from tandem_runtime.execution.graphs import CudaCapture
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.settings import ExecutionConfig
from tandem_runtime.transfer.cuda import CudaCopyEngine
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.protocol import ReceiveReport, SendReport
from tandem_runtime.transfer.staging import StagedPages
from tandem_runtime.transfer.tcp import TcpReceiver, TcpSender

OnReport = Callable[[ReceiveReport | SendReport], None]
OnLoad = Callable[[int, int], None]
"""Called with the bytes of weights read so far, and in all."""


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
        listen: tuple[str, int] | None,
        on_report: OnReport,
        on_load: OnLoad = lambda done, total: None,
        constraints: Constraints | None = None,
    ) -> Rank:
        """Loads the shard; opens the transports at `listen` unless it is None. Raises `StartupError`.

        `constraints`: for rank 0 of a pod that samples.
        """
        if config.device == "cuda":
            torch.cuda.set_device(rank)  # of the calling thread, which is the one that launches
        runner = ModelRunner(config, rank=rank, world=config.tensor_parallel_size, constraints=constraints)
        runner.load(on_load)
        runner.warm_up()
        if config.device == "cuda" and config.cuda_graphs:
            runner.capture_graphs(CudaCapture())
        if listen is None:
            return cls(runner, None)
        host, port = listen
        try:
            receiver = TcpReceiver(_pages(runner, rank), on_report, host=host, port=port)
        except OSError as error:
            raise StartupError(f"--kv-data-port: cannot listen on {host}:{port}: {error.strerror}") from error
        return cls(runner, LocalTransfers(receiver, TcpSender(_pages(runner, rank), on_report)))

    def close(self) -> None:
        if self.transfers is not None:
            self.transfers.close()


def _pages(runner: ModelRunner, rank: int) -> PageMemory | StagedPages:
    """The rank's KV cache as one transport sees it."""
    cache = runner.kv_bytes()
    if cache.device.type == "cpu":
        return PageMemory(cache.numpy().data, runner.layout, rank)
    return StagedPages(CudaCopyEngine(cache), runner.layout, rank, runner.num_pages)
