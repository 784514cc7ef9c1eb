from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from support.step_driver import load_runner, tiny_execution_config
from tandem_runtime.core.errors import StartupError
from tandem_runtime.execution.graphs import buckets
from tandem_runtime.execution.memory import (
    CPU_SHARE,
    DEVICE_OVERHEAD,
    DeviceMemory,
    num_device_pages,
    num_pages,
)
from tandem_runtime.execution.settings import resolve_device


def test_pages_of_a_given_size(tiny: Callable[..., Path]) -> None:
    config = tiny_execution_config(tiny("qwen3"), kv_cache_memory="4MiB", max_model_len=64)
    assert num_pages(config, free_bytes=4 << 20) == (4 << 20) // config.layout.page_bytes


def test_more_than_there_is_is_refused_with_both_figures(tiny: Callable[..., Path]) -> None:
    """Symptom: a traceback of numpy's, after the weights had been loaded."""
    config = tiny_execution_config(tiny("qwen3"), kv_cache_memory="4GiB", max_model_len=64)
    with pytest.raises(StartupError, match=r"--kv-cache-memory is 4\.0 GiB.*more than the 1\.0 GiB that are free"):
        num_pages(config, free_bytes=1 << 30)


def test_pages_of_what_is_free_but_no_more_than_can_be_used(tiny: Callable[..., Path]) -> None:
    config = tiny_execution_config(tiny("qwen3"), kv_cache_memory=None, max_model_len=64, max_num_seqs=2)
    free = int(20 * config.layout.page_bytes / CPU_SHARE) + 1
    assert num_pages(config, free_bytes=free) == 20
    assert num_pages(config, free_bytes=1 << 40) == 2 * config.max_pages_per_seq


def test_ranks_share_what_is_free(tiny: Callable[..., Path]) -> None:
    one = tiny_execution_config(tiny("qwen3"), kv_cache_memory=None, max_model_len=16)
    two = tiny_execution_config(tiny("qwen3"), kv_cache_memory=None, max_model_len=16, tensor_parallel_size=2)
    free = int(10 * one.layout.page_bytes / CPU_SHARE) + 1
    # Half the bytes for half the heads.
    assert num_pages(one, free_bytes=free) == num_pages(two, free_bytes=free) == 10


@pytest.mark.parametrize("memory", ["64KiB", None])
def test_too_little_memory_says_how_much_is_needed(tiny: Callable[..., Path], memory: str | None) -> None:
    config = tiny_execution_config(tiny("qwen3"), kv_cache_memory=memory)
    with pytest.raises(StartupError, match=r"512 tokens needs \d+ MiB .* \d+ MiB are available .*--max-model-len"):
        num_pages(config, free_bytes=1 << 16)


Asked = Literal["auto", "cpu", "cuda"]
GIB = 1 << 30
CARD = DeviceMemory(total=80 * GIB, free=50 * GIB, held=20 * GIB, activations=3 * GIB)


def test_a_card_gives_this_process_its_share(tiny: Callable[..., Path]) -> None:
    config = tiny_execution_config(tiny("qwen3"), kv_cache_memory=None, gpu_memory_utilization=0.5)
    found = num_device_pages(config, CARD)
    graphs = sum(buckets(config.max_num_seqs)) * config.model.vocab_size * 4
    used = CARD.held + CARD.activations + graphs + DEVICE_OVERHEAD
    assert found == (40 * GIB - used) // config.layout.page_bytes
    without = num_device_pages(replace(config, cuda_graphs=False), CARD)
    assert without == (40 * GIB - used + graphs) // config.layout.page_bytes


def test_a_card_that_others_use_gives_what_is_free(tiny: Callable[..., Path]) -> None:
    config = tiny_execution_config(tiny("qwen3"), kv_cache_memory=None, gpu_memory_utilization=0.9)
    found = num_device_pages(replace(config, cuda_graphs=False), replace(CARD, free=5 * GIB))
    assert found == (5 * GIB - CARD.activations - DEVICE_OVERHEAD) // config.layout.page_bytes


def test_a_full_card_is_refused_with_the_numbers(tiny: Callable[..., Path]) -> None:
    config = tiny_execution_config(tiny("qwen3"), kv_cache_memory=None, gpu_memory_utilization=0.25)
    expected = r"may use 20\.0 GiB and 50\.0 GiB are free; the model holds 20\.0 GiB and a step needs 4\.0 GiB"
    with pytest.raises(StartupError, match=expected):
        num_device_pages(config, CARD)


def test_a_cards_kv_memory_is_taken_as_given_where_it_fits(tiny: Callable[..., Path]) -> None:
    config = tiny_execution_config(tiny("qwen3"), kv_cache_memory="4GiB")
    assert num_device_pages(config, CARD) == 4 * GIB // config.layout.page_bytes
    with pytest.raises(StartupError, match=r"is 4\.0 GiB, more than the 1\.0 GiB"):
        num_device_pages(config, replace(CARD, free=5 * GIB))


@pytest.mark.parametrize(
    ("asked", "cuda_devices", "found"), [("auto", 0, "cpu"), ("auto", 2, "cuda"), ("cpu", 2, "cpu")]
)
def test_device(asked: Literal["auto", "cpu", "cuda"], cuda_devices: int, found: str) -> None:
    assert resolve_device(asked, tensor_parallel_size=2, cuda_devices=cuda_devices) == found


@pytest.mark.parametrize(("cuda_devices", "error"), [(0, "--device cuda: .* no CUDA device"), (1, "--tensor-parallel")])
def test_a_device_that_is_not_there(cuda_devices: int, error: str) -> None:
    with pytest.raises(StartupError, match=error):
        resolve_device("cuda", tensor_parallel_size=2, cuda_devices=cuda_devices)


def test_kv_bytes_are_the_cache_itself(tiny: Callable[..., Path]) -> None:
    runner = load_runner(tiny("qwen3"), kv_cache_memory="1MiB")
    pages = runner.kv_bytes()
    assert pages.shape == (runner.num_pages, runner.layout.page_bytes)
    assert pages.numpy().base is not None
    assert not pages.any()
    runner.warm_up()
    assert pages[0].any()
    assert not pages[2:].any()
