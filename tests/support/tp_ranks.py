"""Tensor-parallel ranks as real processes that execute prepared plans."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from support.step_driver import tiny_execution_config
from tandem_runtime.core.plan import StepPlan, StepResult
from tandem_runtime.execution.parallel import init_group
from tandem_runtime.execution.runner import ModelRunner

RESULT_TIMEOUT_S = 200.0


@dataclass(frozen=True)
class Case:
    folder: Path
    plans: bytes
    """msgpack of list[StepPlan]."""


def execute_on_ranks(
    folders: Sequence[tuple[Path, list[StepPlan]]], *, world: int, tmp_path: Path, **flags: object
) -> list[list[list[StepResult]]]:
    """results[case][rank][step] of every folder's plans, run by `world` processes over gloo."""
    cases = [Case(folder, msgspec.msgpack.encode(plans)) for folder, plans in folders]
    context = multiprocessing.get_context("spawn")
    receivers, processes = [], []
    for rank in range(world):
        receiver, sender = context.Pipe(duplex=False)
        target = context.Process(
            target=_run_rank, args=(rank, world, f"file://{tmp_path}/rendezvous", cases, sender, flags)
        )
        target.start()
        sender.close()
        receivers.append(receiver)
        processes.append(target)
    try:
        by_rank = []
        for receiver in receivers:
            assert receiver.poll(RESULT_TIMEOUT_S), "a rank did not answer"
            by_rank.append(msgspec.msgpack.decode(receiver.recv_bytes(), type=list[list[StepResult]]))
    finally:
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
    return [[rank[i] for rank in by_rank] for i in range(len(cases))]


def _run_rank(
    rank: int, world: int, init_method: str, cases: list[Case], sender: object, flags: dict[str, object]
) -> None:
    init_group(rank=rank, world=world, init_method=init_method, device="cpu")
    results = []
    for case in cases:
        runner = ModelRunner(tiny_execution_config(case.folder, tensor_parallel_size=world, **flags), rank, world)
        runner.load()
        plans = msgspec.msgpack.decode(case.plans, type=list[StepPlan])
        results.append([runner.execute(plan) for plan in plans])
    sender.send_bytes(msgspec.msgpack.encode(results))  # type: ignore[attr-defined]
