"""Block-wise fp8: official checkpoints, quantisation at load, and an fp8 KV cache, on the eager backend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.fp8_checkpoint import to_fp8
from support.step_driver import StepDriver, distribution, full_logprobs, load_runner, tiny_execution_config
from support.tiny_models import Family, build_tiny_model
from tandem_runtime.core.errors import UnsupportedModelError
from tandem_runtime.execution.fp8 import dequantize_blocks, quantize_blocks
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.weights import CheckpointSource, Part

PROMPT = [(11 * i * i + i) % 256 for i in range(19)]
SHAPE = {"hidden_size": 160, "intermediate_size": 384, "num_hidden_layers": 2, "initializer_range": 0.06}


@pytest.fixture(scope="module", params=["qwen3", "qwen3_moe"])
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """As trained, in fp8, and what the fp8 one means."""
    family: Family = request.param
    base = tmp_path_factory.mktemp(family)
    own = {"moe_intermediate_size": 192, "num_experts": 4} if family == "qwen3_moe" else {}
    source = build_tiny_model(base / "trained", family, **SHAPE, **own)
    to_fp8(source, base / "fp8", base / "plain")
    return source, base / "fp8", base / "plain"


def distributions(runner: ModelRunner) -> torch.Tensor:
    """After the prompt, in two chunks, and two tokens."""
    driver = StepDriver(runner)
    driver.start(0, PROMPT, full_logprobs(runner))
    driver.step(driver.chunk(0, 0, PROMPT[:12]))
    results = [driver.step(driver.chunk(0, 12, PROMPT[12:], sample=True))]
    results += [driver.step(driver.chunk(0, len(PROMPT) + i, [7 + i], sample=True)) for i in range(2)]
    return torch.stack([distribution(result) for result in results])


def kl(of: torch.Tensor, against: torch.Tensor) -> float:
    return float((of.exp() * (of - against)).sum(-1).max())


def test_an_fp8_checkpoint_means_what_its_numbers_say(checkpoints: tuple[Path, Path, Path]) -> None:
    _, fp8, plain = checkpoints
    torch.testing.assert_close(distributions(load_runner(fp8)), distributions(load_runner(plain)), rtol=1e-4, atol=1e-4)


def test_quantising_at_load_costs_little(checkpoints: tuple[Path, Path, Path]) -> None:
    source, fp8, _ = checkpoints
    trained = distributions(load_runner(source))
    online = distributions(load_runner(source, quantization="fp8"))
    assert 0 < kl(trained, online) < 0.02
    # The same blocks and the same rounding as the checkpoint's.
    torch.testing.assert_close(online, distributions(load_runner(fp8)), rtol=1e-3, atol=1e-3)


def test_an_fp8_cache_costs_little_and_half_the_bytes(checkpoints: tuple[Path, Path, Path]) -> None:
    source, _, _ = checkpoints
    plain, small = load_runner(source), load_runner(source, kv_cache_dtype="fp8")
    assert small.layout.page_bytes * 4 == plain.layout.page_bytes
    assert small.num_pages == 4 * plain.num_pages
    assert 0 < kl(distributions(plain), distributions(small)) < 0.02


@pytest.mark.parametrize("rank", range(8))
def test_a_shard_that_begins_inside_a_block(rank: int, tmp_path: Path) -> None:
    """1536 / 8 = 192: every other rank's rows and columns begin in the middle of a block."""
    folder = tmp_path / "trained"
    build_tiny_model(folder, "qwen3", hidden_size=64, intermediate_size=1536, num_hidden_layers=1)
    to_fp8(folder, tmp_path / "fp8", tmp_path / "plain")
    found, expected = (
        CheckpointSource(
            tmp_path / name, dtype=torch.float32, device="cpu", progress=lambda a, b: None, ignore=frozenset()
        )
        for name in ("fp8", "plain")
    )
    held = range(192 * rank, 192 * (rank + 1))
    name = "model.layers.0.mlp"
    gate_up = [Part(f"{name}.{p}_proj.weight", (1536, 64), rows=held) for p in ("gate", "up")]
    down = [Part(f"{name}.down_proj.weight", (64, 1536), cols=held)]
    for parts in (gate_up, down):
        shard = found.take_fp8(parts)
        assert shard.weight_NK.dtype == torch.float8_e4m3fn
        torch.testing.assert_close(dequantize_blocks(shard, torch.float32), expected.take(parts), rtol=0, atol=0)
    assert shard.first_column == 64 * (rank % 2)


def test_a_block_of_zeros_stays_zeros_and_the_largest_entry_is_exact() -> None:
    weight = torch.zeros(130, 200)
    weight[129, 199] = -3.0
    found = quantize_blocks(weight)
    assert found.scale_RC.shape == (2, 2)
    assert torch.equal(dequantize_blocks(found, torch.float32), weight)


def test_another_quantisation_is_refused_by_name(checkpoints: tuple[Path, Path, Path], tmp_path: Path) -> None:
    config = json.loads((checkpoints[1] / "config.json").read_text())
    config["quantization_config"]["weight_block_size"] = None
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"quantization fp8 \(weight_block_size None\).*128 x 128"):
        tiny_execution_config(tmp_path)
