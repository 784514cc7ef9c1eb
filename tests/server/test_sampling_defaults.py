"""What a request leaves out is sampled as the model's makers want it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.scripted_engine import ScriptedEngine
from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.completions import CompletionRequest
from tandem_runtime.server.protocol.convert import to_engine_requests
from tandem_runtime.server.sampling_defaults import NEUTRAL, SamplingDefaults

QWEN3 = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
}


def read(folder: Path, content: object) -> SamplingDefaults:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return SamplingDefaults.from_folder(str(folder))


def sampling(defaults: SamplingDefaults, **fields: Any) -> SamplingParams:
    request = parse(CompletionRequest, {"model": "m", "prompt": "x", **fields})
    (made,) = to_engine_requests(
        request,
        [1],
        request_id="r",
        info=ScriptedEngine().info,
        prompt_param="prompt",
        max_tokens=1,
        seed=1,
        defaults=defaults,
    )
    return made.sampling


def test_a_model_without_wishes(tmp_path: Path) -> None:
    assert SamplingDefaults.from_folder(str(tmp_path)) == NEUTRAL
    assert read(tmp_path, {"eos_token_id": 2, "temperature": None}) == NEUTRAL


def test_requests_come_before_the_model(tmp_path: Path) -> None:
    defaults = read(tmp_path, QWEN3)
    left_out = sampling(defaults)
    assert (left_out.temperature, left_out.top_k, left_out.top_p, left_out.min_p) == (0.6, 20, 0.95, 0.0)
    asked = sampling(defaults, temperature=0, top_k=0, top_p=1.0, min_p=0.1)
    assert (asked.temperature, asked.top_k, asked.top_p, asked.min_p) == (0.0, 0, 1.0, 0.1)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "no JSON object"),
        ({"temperature": "hot"}, "temperature 'hot'"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_k": True}, "top_k True"),
        ({"repetition_penalty": -1}, "repetition_penalty -1"),
    ],
)
def test_a_bad_file_stops_the_start(tmp_path: Path, content: object, named: str) -> None:
    with pytest.raises(StartupError, match=named) as error:
        read(tmp_path, content)
    assert "--generation-config none" in str(error.value)
