"""Prompts that cannot be: of completions, of the token routes, too long ones, and models without a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from server.refusals import CHAT, HELLO, TEXT, refused, user
from support import tiny_tokenizer
from support.api_server import Server
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt[1]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [400]}, "prompt"),
        ({"prompt": [10**12]}, "prompt[0]"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "messages": HELLO}, "messages"),
    ],
)
async def test_completion_fields(http: aiohttp.ClientSession, fields: dict[str, Any], param: str | None) -> None:
    status, error = await refused(http, TEXT, {"model": "tiny", **fields})
    assert (status, error["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        (CHAT, {"stop": 7}, "'stop': Input should be a valid string or a valid list"),
        (CHAT, {"messages": user(7)}, "'messages[0].content': Input should be a valid string or a valid list"),
        (TEXT, {"prompt": 7}, "'prompt': Input should be a valid string or a valid list"),
        (TEXT, {"prompt": [1, "a"]}, "'prompt[1]': Input should be a valid integer or a valid list"),
        (TEXT, {"prompt": ["a", 1]}, "'prompt[1]': Input should be a valid string or a valid list"),
    ],
)
async def test_errors_say_all_that_a_field_may_be(
    http: aiohttp.ClientSession, path: str, fields: dict[str, Any], message: str
) -> None:
    """Symptom: `"stop": 7` was answered with 'should be a valid string', as if a list were none."""
    given = {"messages": HELLO} if path == CHAT else {"prompt": "a"}
    status, error = await refused(http, path, {"model": "tiny"} | given | fields)
    assert (status, error["message"]) == (400, message)


async def test_too_long_a_prompt_names_both_lengths(http: aiohttp.ClientSession) -> None:
    status, error = await refused(http, TEXT, {"model": "tiny", "prompt": [7] * 256})
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert "the prompt has 256 tokens" in error["message"]
    assert "context of 256 tokens" in error["message"]
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": user("word " * 3000)})
    assert (status, error["param"]) == (400, "messages")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": HELLO}),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {}}),
        ("/detokenize", {"tokens": [400]}),
        ("/detokenize", {"tokens": ["1"]}),
        ("/detokenize", {"tokens": [10**20]}),
    ],
)
async def test_token_endpoints(http: aiohttp.ClientSession, path: str, body: Any) -> None:
    status, _ = await refused(http, path, body)
    assert status == 400


async def test_a_model_without_a_template(server: Server, http: aiohttp.ClientSession, tmp_path: Path) -> None:
    plain = Tokenizer(str(tiny_tokenizer.build(tmp_path, chat_template=None)))
    server.pod.loaded = LoadedModel(server.engine, plain, splits_reasoning=False)
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO})
    assert status == 400
    assert "no chat template" in error["message"]
