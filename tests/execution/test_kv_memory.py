from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.step_driver import load_runner, tiny_execution_config
from tandem_runtime.core.errors import StartupError
from tandem_runtime.execution.memory import CPU_SHARE, free_host_bytes, num_pages


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


def test_free_memory_is_a_sane_number() -> None:
    assert 1 << 20 < free_host_bytes() < 1 << 50


def test_kv_bytes_are_the_cache_itself(tiny: Callable[..., Path]) -> None:
    runner = load_runner(tiny("qwen3"), kv_cache_memory="1MiB")
    pages = runner.kv_bytes()
    assert pages.shape == (runner.num_pages, runner.layout.page_bytes)
    assert pages.numpy().base is not None
    assert not pages.any()
    runner.warm_up()
    assert pages[0].any()
    assert not pages[2:].any()
