"""The whole runner with the `triton` backend against the eager one: the same plans, the same distributions and ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace as with_fields
from support.kernels import normal
from support.step_driver import StepDriver, distribution, full_logprobs, load_runner, tiny_execution_config
from support.tiny_models import Family, build_tiny_model
from tandem_runtime.core.plan import Chunk, SlotStart, StepPlan, StepResult
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.execution.backends import ops_of
from tandem_runtime.execution.graphs import CudaCapture, Graph
from tandem_runtime.execution.layers.context import BuildContext
from tandem_runtime.execution.parallel import TensorParallel
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.weights import CheckpointSource

TOLERANCE = 2e-4
PROMPTS = {0: [(7 * i * i + i) % 256 for i in range(11)], 2: [5, 9, 200], 1: [(3 * i) % 256 for i in range(6)]}
FAMILIES: tuple[Family, ...] = ("llama", "qwen3", "qwen3_moe")


@pytest.fixture(scope="session", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp(request.param), request.param, num_hidden_layers=2)


@pytest.fixture(scope="session")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("one_layer"), "llama", num_hidden_layers=1)


class Rerun:
    """A graph for devices without: computes again, into the memory of the first result."""

    def __init__(self, work: Callable[[], torch.Tensor | None]) -> None:
        self._work = work
        self.result = work()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        again = self._work()
        if self.result is not None and again is not None:
            self.result.copy_(again)


def mixed_steps(runner: ModelRunner, sampling: SamplingParams) -> list[StepResult]:
    """Prompts whole, cut and beside decode rows; decodes of one to three sequences; a slot that is used again."""
    driver = StepDriver(runner)
    for slot in (0, 2):
        driver.start(slot, PROMPTS[slot], sampling)
    results = [
        driver.step(driver.chunk(0, 0, PROMPTS[0][:7])),
        driver.step(driver.chunk(2, 0, PROMPTS[2], sample=True)),
    ]
    results.append(driver.step(driver.chunk(2, 3, None, sample=True), driver.chunk(0, 7, PROMPTS[0][7:], sample=True)))
    driver.start(1, PROMPTS[1], sampling)
    results.append(
        driver.step(
            driver.chunk(0, 11, None, sample=True),
            driver.chunk(2, 4, None, sample=True),
            driver.chunk(1, 0, PROMPTS[1], sample=True),
        )
    )
    for i in range(2):
        results.append(
            driver.step(*(driver.chunk(slot, n + i, None, sample=True) for slot, n in ((0, 12), (2, 5), (1, 6))))
        )
    driver.start(2, [77], sampling)
    results.append(driver.step(driver.chunk(2, 0, [77], sample=True)))
    return results


def assert_alike(found: list[StepResult], expected: list[StepResult]) -> None:
    for step, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.token_ids == b.token_ids, step
        for i in range(len(a.token_ids)):
            assert (distribution(a, i) - distribution(b, i)).abs().max() <= TOLERANCE, (step, i)


def test_equals_the_eager_runner(folder: Path, device: str) -> None:
    host = load_runner(folder)
    there = load_runner(folder, backend="triton", device=device)
    sampling = full_logprobs(host)
    assert_alike(mixed_steps(there, sampling), mixed_steps(host, sampling))
    torch.testing.assert_close(
        there.kv_bytes().view(torch.float32).cpu(), host.kv_bytes().view(torch.float32), rtol=1e-4, atol=1e-4
    )


def test_decode_graphs_change_nothing(one_layer: Path, device: str) -> None:
    graphs: list[Rerun] = []

    def capture(work: Callable[[], torch.Tensor | None]) -> tuple[Graph, torch.Tensor | None]:
        graphs.append(Rerun(work))
        return graphs[-1], graphs[-1].result

    plain = load_runner(one_layer, backend="triton", device=device)
    runner = load_runner(one_layer, backend="triton", device=device, max_num_seqs=4)
    runner.capture_graphs(capture)
    sampling = full_logprobs(plain)
    assert_alike(mixed_steps(runner, sampling), mixed_steps(plain, sampling))
    # Sizes 4 (three sequences, so one row of padding), 2 and 1, in the order they were captured.
    assert [graph.replays for graph in graphs] == [2, 0, 1]


@pytest.mark.gpu
def test_captured_graphs_change_nothing(folder: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    host = load_runner(folder)
    there = load_runner(folder, device="cuda")
    there.warm_up()
    there.capture_graphs(CudaCapture())
    sampling = full_logprobs(host)
    assert_alike(mixed_steps(there, sampling), mixed_steps(host, sampling))


@pytest.mark.gpu
def test_steps_launched_ahead_of_the_device(one_layer: Path) -> None:
    """Each step's input is what the one before samples, and nobody has waited for that."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    prompt, answers = PROMPTS[0], {}
    for device in ("cpu", "cuda"):
        runner = load_runner(one_layer, device=device)
        if device == "cuda":
            runner.capture_graphs(CudaCapture())
        sampling = SamplingParams(max_tokens=99, temperature=0.0)
        start = SlotStart(3, prompt, [], list(range(runner.layout.pages_for(len(prompt) + 8))), sampling)
        launched = [runner.launch(StepPlan(0, [start], [Chunk(3, 0, len(prompt), prompt, [], True)]))]
        for i in range(8):
            launched.append(runner.launch(StepPlan(1 + i, [], [Chunk(3, len(prompt) + i, 1, None, [], True)])))
        answers[device] = [step.result().token_ids for step in launched]
    assert answers["cuda"] == answers["cpu"]


DRAWN = SamplingParams(
    max_tokens=99,
    temperature=0.8,
    top_p=0.9,
    top_k=40,
    seed=-3,
    repetition_penalty=1.2,
    presence_penalty=0.3,
    logprobs=3,
)
SAMPLINGS = {
    "penalties and truncation": DRAWN,
    "biased": SamplingParams(
        max_tokens=99, temperature=1.0, logit_bias={7: 4.0, 9: -5.0}, frequency_penalty=0.5, seed=1
    ),
    "masked stops": SamplingParams(max_tokens=99, temperature=0.7, min_p=0.05, min_tokens=9, stop_token_ids=(11, 12)),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_samples_the_same_ids(one_layer: Path, sampling: SamplingParams, device: str) -> None:
    expected = mixed_steps(load_runner(one_layer), sampling)
    found = mixed_steps(load_runner(one_layer, backend="triton", device=device), sampling)
    assert [result.token_ids for result in found] == [result.token_ids for result in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.logprobs.keys() == b.logprobs.keys()
        for i, logprobs in a.logprobs.items():
            assert [token for token, _ in logprobs.top] == [token for token, _ in b.logprobs[i].top]
            assert logprobs.logprob == pytest.approx(b.logprobs[i].logprob, abs=TOLERANCE)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_verifies_drafts_like_the_eager_runner(one_layer: Path, sampling: SamplingParams, device: str) -> None:
    """Beside a decode row, with the first two of three guesses right, and then what penalties have learnt of it."""
    found = []
    for runner in (load_runner(one_layer), load_runner(one_layer, backend="triton", device=device)):
        driver = StepDriver(runner)
        driver.start(0, PROMPTS[0], sampling)
        driver.start(1, PROMPTS[1], sampling)
        first, other = driver.prefill(0, PROMPTS[0]), driver.prefill(1, PROMPTS[1])
        if not found:
            foreseen = StepDriver(load_runner(one_layer))
            foreseen.start(0, PROMPTS[0], sampling, output=[first])
            text = [foreseen.prefill(0, [*PROMPTS[0], first]), *foreseen.decode({0: len(PROMPTS[0]) + 1}, 3)[0]]
        guessed = driver.chunk(0, len(PROMPTS[0]), [first, *text[:2], (text[2] + 1) % 256], sample=True)
        guessed = with_fields(guessed, num_drafts=3)
        results = [driver.step(driver.chunk(1, len(PROMPTS[1]), [other], sample=True), guessed)]
        assert results[0].token_ids[1:4] == text[:3]
        results.append(driver.step(driver.chunk(0, len(PROMPTS[0]) + 3, text[2:3], sample=True)))
        assert results[1].token_ids == text[3:]
        found.append([result.token_ids for result in results])
    assert found[0] == found[1]


def test_prompt_logprobs(one_layer: Path, device: str) -> None:
    sampling = SamplingParams(max_tokens=9, temperature=0.0, prompt_logprobs=2)
    found, expected = (
        mixed_steps(runner, sampling)
        for runner in (load_runner(one_layer, backend="triton", device=device), load_runner(one_layer))
    )
    for a, b in zip(found, expected, strict=True):
        assert [[x.token_id for x in rows] for rows in a.prompt_logprobs.values()] == [
            [x.token_id for x in rows] for rows in b.prompt_logprobs.values()
        ]
        for chunk, rows in a.prompt_logprobs.items():
            for x, y in zip(rows, b.prompt_logprobs[chunk], strict=True):
                assert x.logprob == pytest.approx(y.logprob, abs=TOLERANCE)


def test_fp8_weights_and_cache_stay_close_to_what_they_round(tmp_path: Path, device: str) -> None:
    """Decodes take the fp8 product, a prompt of more than 64 tokens the widened one."""
    shape = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 1, "initializer_range": 0.06}
    folder = build_tiny_model(tmp_path, "qwen3_moe", mlp_only_layers=[], moe_intermediate_size=96, **shape)
    flags = {"quantization": "fp8", "kv_cache_dtype": "fp8"}
    prompt = [(5 * i * i) % 256 for i in range(66)]
    found = []
    for runner in (load_runner(folder, **flags), load_runner(folder, backend="triton", device=device, **flags)):
        driver = StepDriver(runner)
        driver.start(0, prompt, full_logprobs(runner))
        results = [driver.step(driver.chunk(0, 0, prompt, sample=True))]
        results.append(driver.step(driver.chunk(0, 66, [3], sample=True)))
        found.append(torch.stack([distribution(result) for result in results]))
    # The kernels also round activations, and a chunk's own K and V.
    assert (found[0].exp() * (found[0] - found[1])).sum(-1).max() < 0.02


class Half(TensorParallel):
    """One of two ranks; the test adds up what both come to."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank, 2)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_ranks_of_whole_experts_add_up(tmp_path: Path, device: str) -> None:
    folder = build_tiny_model(tmp_path, "qwen3_moe", mlp_only_layers=[], num_hidden_layers=1)
    config = tiny_execution_config(folder, device=device)
    x_TE = normal(9, 48, dtype=torch.float32, device=device)
    found = []
    for tp, expert_parallel in ((TensorParallel(), False), (Half(0), True), (Half(1), True)):
        source = CheckpointSource(
            folder, dtype=torch.float32, device=device, progress=lambda done, total: None, ignore=frozenset()
        )
        ops = ops_of(replace(config, backend="triton"))
        context = BuildContext(config.model, tp, source, ops, range(2), expert_parallel)
        residual_TE = torch.ones_like(x_TE)
        found.append(ops.moe(context, "model.layers.0.mlp").add_to(residual_TE, x_TE))
    torch.testing.assert_close(found[1] + found[2], found[0], rtol=1e-5, atol=1e-5)
