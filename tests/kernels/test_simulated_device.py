"""The whole runner on a simulated CUDA device, under the interpreter: devices, waits and captures as on a card."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.simulated_cuda import NOT_YET, DeviceRuleBroken, SimulatedCuda, simulated_cuda
from support.step_driver import GREEDY, StepDriver, load_runner, tiny_execution_config
from support.tiny_models import Family, build_tiny_model
from tandem_kernels.rms_norm import rms_norm
from tandem_runtime.core.plan import StepPlan
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.graphs import Graph
from tandem_runtime.execution.runner import LaunchedStep, ModelRunner
from tandem_runtime.execution.upload import to_device, to_host

PROMPTS = {0: [(7 * i * i + i) % 256 for i in range(11)], 1: [(3 * i) % 256 for i in range(6)]}
FAMILIES: tuple[Family, ...] = ("llama", "qwen3", "qwen3_moe")


@pytest.fixture
def cuda() -> Iterator[SimulatedCuda]:
    with simulated_cuda() as device:
        yield device


def runner_on(cuda: SimulatedCuda, folder: Path, **flags: object) -> ModelRunner:
    config = tiny_execution_config(folder, max_num_batched_tokens=16, max_num_seqs=2, max_model_len=32, **flags)
    runner = ModelRunner(replace(config, device="cuda", backend="triton"))
    runner.load()
    return runner


class Replay:
    """A graph that computes again into the memory of the first result, under a capture's rules each time."""

    def __init__(self, cuda: SimulatedCuda, work: Callable[[], torch.Tensor | None]) -> None:
        self._cuda, self._work = cuda, work
        with cuda.capture():
            self.result = work()

    def replay(self) -> None:
        with self._cuda.capture():
            again = self._work()
            assert self.result is not None
            assert again is not None
            self.result.copy_(again)


def capturing(cuda: SimulatedCuda) -> Callable[[Callable[[], torch.Tensor | None]], tuple[Graph, torch.Tensor | None]]:
    def capture(work: Callable[[], torch.Tensor | None]) -> tuple[Graph, torch.Tensor | None]:
        graph = Replay(cuda, work)
        return graph, graph.result

    return capture


def ahead(runner: ModelRunner, sampling: SamplingParams) -> list[LaunchedStep]:
    """Two prompts, one in two chunks, then decode steps, each launched before anything is known of the one before."""
    driver = StepDriver(runner)
    driver.start(0, PROMPTS[0], sampling)
    driver.start(1, PROMPTS[1], sampling)
    steps = [
        [driver.chunk(0, 0, PROMPTS[0][:7])],
        [driver.chunk(1, 0, PROMPTS[1], sample=True), driver.chunk(0, 7, PROMPTS[0][7:], sample=True)],
        *([driver.chunk(0, 11 + i, None, sample=True), driver.chunk(1, 6 + i, None, sample=True)] for i in range(2)),
    ]
    starts = driver.take_starts()
    return [runner.launch(StepPlan(i, starts if i == 0 else [], chunks)) for i, chunks in enumerate(steps)]


SAMPLINGS = {
    "drawn": SamplingParams(
        max_tokens=99, temperature=0.8, top_p=0.9, top_k=40, seed=5, repetition_penalty=1.2, logprobs=3
    ),
    "biased": SamplingParams(max_tokens=99, temperature=1.0, logit_bias={7: 4.0, 9: -5.0}, seed=1),
    "masked stops": SamplingParams(max_tokens=99, temperature=0.7, min_tokens=9, stop_token_ids=(11, 12), seed=2),
}


def serve(cuda: SimulatedCuda, runner: ModelRunner, sampling: SamplingParams) -> list[list[int]]:
    cuda.serving = True
    launched = ahead(runner, sampling)
    cuda.serving = False
    return [step.result().token_ids for step in launched]


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_and_graphs_keep_a_cards_rules(family: Family, tmp_path: Path, cuda: SimulatedCuda) -> None:
    folder = build_tiny_model(tmp_path, family, num_hidden_layers=1)
    expected = [step.result().token_ids for step in ahead(load_runner(folder), GREEDY)]
    runner = runner_on(cuda, folder)
    assert serve(cuda, runner, GREEDY) == expected
    runner.capture_graphs(capturing(cuda))
    assert serve(cuda, runner, GREEDY) == expected


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_sampling_does_not_wait(sampling: SamplingParams, tmp_path: Path, cuda: SimulatedCuda) -> None:
    folder = build_tiny_model(tmp_path, "llama", num_hidden_layers=1)
    expected = [step.result().token_ids for step in ahead(load_runner(folder), sampling)]
    assert serve(cuda, runner_on(cuda, folder), sampling) == expected


def test_fp8_weights_and_cache(tmp_path: Path, cuda: SimulatedCuda) -> None:
    folder = build_tiny_model(tmp_path, "qwen3_moe", num_hidden_layers=1)
    runner = runner_on(cuda, folder, quantization="fp8", kv_cache_dtype="fp8")
    assert all(0 <= token < 260 for ids in serve(cuda, runner, GREEDY) for token in ids)


def broken(rule: str, work: Callable[[], object]) -> None:
    with pytest.raises(DeviceRuleBroken, match=rule):
        work()


def test_the_device_itself_keeps_its_rules(cuda: SimulatedCuda) -> None:
    there, here = torch.ones(3, 16, device="cuda"), torch.ones(3, 16)
    broken("is on the host", lambda: there + here)
    broken("weight is on the host", lambda: rms_norm(there, here[0], 1e-6))
    cuda.serving = True
    broken("waits", lambda: there.sum().item())
    broken("waits", lambda: there[there > 0])
    broken("pinned=False", lambda: here.to("cuda", non_blocking=True))
    broken("non_blocking=False", lambda: here.pin_memory().to("cuda"))
    with cuda.capture():
        broken("captured", lambda: to_device(here, there.device))


def test_copies_to_the_host_arrive_with_the_event_after_them(cuda: SimulatedCuda) -> None:
    there = torch.arange(3, device="cuda")
    early, late = torch.cuda.Event(), torch.cuda.Event()
    early.record()
    host = to_host(there)
    late.record()
    early.synchronize()
    assert host.view(torch.uint8).tolist() == [NOT_YET] * 24
    late.synchronize()
    assert host.tolist() == [0, 1, 2]
