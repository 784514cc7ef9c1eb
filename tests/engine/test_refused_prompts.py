"""A prompt that can never run, as its own API calls it."""

from __future__ import annotations

import queue
from typing import Any

import pytest
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine.loop import Engine
from tandem_runtime.engine.messages import EngineOutput, EngineRequest, Outputs
from tandem_runtime.scheduling import Scheduler, SchedulerConfig


@pytest.mark.parametrize("param", ["messages", "input", "prompt"])
def test_the_field_that_it_came_in_is_named(param: str) -> None:
    """It was always called `prompt`, which is no field of chat completions, nor (as text) of responses."""
    told: list[EngineOutput] = []

    def publish(message: object) -> None:
        told.extend(message.outputs if isinstance(message, Outputs) else ())

    config = SchedulerConfig(
        page_size=4, num_pages=2, max_num_seqs=1, max_num_batched_tokens=16, max_prefill_tokens_with_decodes=16,
        max_model_len=80, max_waiting=2, enable_prefix_caching=True, cache_root=b"",
    )  # fmt: skip
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    engine = Engine(name="e0", scheduler=Scheduler(config), submit=lambda plan: None, inbox=inbox, publish=publish)
    sampling = SamplingParams(max_tokens=1)
    engine.turn(EngineRequest(request_id="r", prompt_token_ids=[1] * 8, prompt_param=param, sampling=sampling))
    [refusal] = told
    assert (refusal.error_code, refusal.error_param) == ("context_length_exceeded", param)
