"""What two pods must have in common before one goes on with the other's streams."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import tiny_tokenizer
from support.scripted_engine import ScriptedEngine
from tandem_contract.flags import ServeFlags
from tandem_runtime.server.continuation import digest
from tandem_runtime.server.sampling_defaults import NEUTRAL, SamplingDefaults
from tandem_runtime.text.tokenizer import CONFIG_FILE, TEMPLATE_FILE, TOKENIZER_FILE, Tokenizer

INFO = ScriptedEngine().info

DECIDING = {
    *("model", "load_format", "rope_scaling", "max_model_len"),
    *("dtype", "kv_cache_dtype", "quantization", "page_size"),
    *("device", "tensor_parallel_size", "expert_parallel"),
    *("chat_template", "reasoning_parser", "generation_config"),
    *("kv_cache_memory", "gpu_memory_utilization"),  # where the pages hold less than a whole context
}
"""Flags that decide how an answer goes on, and so reach the digest, by what comes of them."""
NOT_DECIDING = {
    *("served_model_name", "role", "log_format", "log_level"),
    *("host", "port", "metrics_port", "handoff_port", "kv_data_port", "kv_transport", "advertise_host"),
    *("api_key_file", "ticket_key_file", "handoff_lease_seconds", "request_timeout", "drain_timeout"),
    # How many at once, and how soon: answers do not depend on their batch, or on where their prompt was computed.
    *("max_num_seqs", "max_num_batched_tokens", "max_prefill_tokens_with_decodes", "max_waiting", "cpu_threads"),
    *("cuda_graphs", "enable_prefix_caching", "local_prefill_max_tokens"),
    # Guesses change no answer.
    *("speculative_method", "num_speculative_tokens", "prompt_lookup_min", "prompt_lookup_max"),
    "speculative_disable_by_batch_size",
    "seed",  # a stream's own is in its records
}


def of(tokenizer: Tokenizer, info: Any = INFO, *, splits: bool = True, defaults: SamplingDefaults = NEUTRAL) -> str:
    return digest(info, tokenizer, splits_reasoning=splits, defaults=defaults)


def test_every_flag_was_thought_of() -> None:
    """A new flag belongs in one of the lists, and where it decides how an answer goes on, in the digest."""
    assert not DECIDING & NOT_DECIDING
    assert {field.name for field in fields(ServeFlags)} == DECIDING | NOT_DECIDING


def test_equal_pods_are_equal(tiny_folder: Path, tokenizer: Tokenizer) -> None:
    assert of(Tokenizer(str(tiny_folder))) == of(tokenizer)
    elsewhere = msgspec.structs.replace(INFO, incarnation="i-2", load_seconds=9.0, num_pages=7, max_waiting=3)
    assert of(tokenizer, elsewhere) == of(tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint": replace(INFO.fingerprint, model="other")},
        {"arithmetic": "other"},
        {"max_model_len": 255},
        {"vocab_size": 401},
        {"eos_token_ids": (2, 3)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_model_or_context_goes_on_differently(tokenizer: Tokenizer, change: dict[str, Any]) -> None:
    assert of(tokenizer, msgspec.structs.replace(INFO, **change)) != of(tokenizer)


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingDefaults)])
def test_each_sampling_default_counts(tokenizer: Tokenizer, name: str) -> None:
    other = replace(NEUTRAL, **{name: asdict(NEUTRAL)[name] + 1})
    assert of(tokenizer, defaults=other) != of(tokenizer)


def test_the_reasoning_parser_counts(tokenizer: Tokenizer) -> None:
    assert of(tokenizer, splits=False) != of(tokenizer)


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(change(content)))

    return edited


def template(source: str) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        (folder / TEMPLATE_FILE).write_text(source)

    return edited


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(template(tiny_tokenizer.CHAT_TEMPLATE + " "), id="template"),
        pytest.param(lambda folder: (folder / TEMPLATE_FILE).unlink(), id="no template"),
        pytest.param(edit(CONFIG_FILE, lambda config: config | {"eos_token": "<|endoftext|>"}), id="special tokens"),
        pytest.param(
            edit(TOKENIZER_FILE, lambda whole: whole | {"added_tokens": whole["added_tokens"][:-1]}), id="added tokens"
        ),
        pytest.param(
            edit(TOKENIZER_FILE, lambda whole: whole | {"normalizer": {"type": "Lowercase"}}), id="normalizer"
        ),
    ],
)
def test_another_tokenizer_goes_on_differently(
    tmp_path: Path, tokenizer: Tokenizer, change: Callable[[Path], None]
) -> None:
    folder = tiny_tokenizer.build(tmp_path)
    assert of(Tokenizer(str(folder))) == of(tokenizer)
    change(folder)
    assert of(Tokenizer(str(folder))) != of(tokenizer)


def test_a_template_of_ones_own_counts(tiny_folder: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    own = tmp_path / "own.jinja"
    own.write_text("{{ messages[0].content }}")
    assert of(Tokenizer(str(tiny_folder), chat_template=str(own))) != of(tokenizer)
