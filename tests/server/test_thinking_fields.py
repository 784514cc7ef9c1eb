"""Fields that ask for a thought, or for none, to models that think, that always think, and that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from server.refusals import CHAT, HELLO, refused
from support import tiny_tokenizer
from support.api_server import Server
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.text.tokenizer import Tokenizer

RESPONSES = "/v1/responses"
PLAIN = "{{ messages[-1].content }}"
ALWAYS = PLAIN + "<think>\n"
EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "max")

ASK: list[tuple[dict[str, Any], str]] = [
    ({"enable_thinking": True}, "enable_thinking"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "chat_template_kwargs.enable_thinking"),
    ({"thinking_budget": 9}, "thinking_budget"),
    ({"chat_template_kwargs": {"thinking_budget": 9}}, "chat_template_kwargs.thinking_budget"),
    *[({"reasoning_effort": effort}, "reasoning_effort") for effort in EFFORTS],
]
ASK_NOT: list[dict[str, Any]] = [
    {"enable_thinking": False},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"thinking_budget": 0},
    {"chat_template_kwargs": {"thinking_budget": 0}},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": False}},
    {"enable_thinking": None, "thinking_budget": None, "reasoning_effort": None, "chat_template_kwargs": None},
]


def use_template(server: Server, folder: Path, template: str, *, splits: bool) -> None:
    tokenizer = Tokenizer(str(tiny_tokenizer.build(folder, chat_template=template)))
    server.pod.loaded = LoadedModel(server.engine, tokenizer, splits_reasoning=splits)


async def ask(http: aiohttp.ClientSession, fields: dict[str, Any], content: str = "Hi") -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}
    async with http.post(CHAT, json=body) as response:
        assert response.status == 200, await response.text()


@pytest.fixture
async def plain(server: Server, tmp_path: Path) -> Server:
    use_template(server, tmp_path, PLAIN, splits=False)
    return server


@pytest.fixture
async def always(server: Server, tmp_path: Path) -> Server:
    use_template(server, tmp_path, ALWAYS, splits=True)
    return server


@pytest.mark.parametrize(("fields", "param"), ASK)
async def test_no_thought_of_a_model_that_does_not_think(
    plain: Server, http: aiohttp.ClientSession, fields: dict[str, Any], param: str
) -> None:
    """Symptom: effort `high` was refused, `xhigh` and `max` were not. Cause: only a number of tokens was looked at."""
    status, error = await refused(http, CHAT, {"model": "tiny", "messages": HELLO, **fields})
    assert (status, error["param"]) == (400, param)
    assert f"'{param}' asks for a thought, but the model does not think" in error["message"]


@pytest.mark.parametrize("effort", EFFORTS)
async def test_nor_by_the_name_that_responses_give_it(plain: Server, http: aiohttp.ClientSession, effort: str) -> None:
    body = {"model": "tiny", "input": "Hi", "reasoning": {"effort": effort}}
    status, error = await refused(http, RESPONSES, body)
    assert (status, error["param"]) == (400, "reasoning.effort")


@pytest.mark.parametrize("fields", ASK_NOT)
async def test_whatever_asks_for_none_is_in_order(
    plain: Server, http: aiohttp.ClientSession, fields: dict[str, Any]
) -> None:
    for words in ("Hi", "Hi /think", "Hi /no_think"):
        await ask(http, fields, words)
        assert plain.engine.requests[-1].sampling.thinking is None
        assert plain.tokenizer.decode(plain.engine.requests[-1].prompt_token_ids) == words


@pytest.mark.parametrize(("fields", "param"), ASK)
async def test_a_model_that_always_thinks_may_be_asked_to(
    always: Server, http: aiohttp.ClientSession, fields: dict[str, Any], param: str
) -> None:
    """Symptom: `enable_thinking` was refused by models that think whatever their template is told."""
    await ask(http, fields)
    assert always.engine.requests[-1].sampling.thinking is not None


@pytest.mark.parametrize("fields", ASK_NOT[:-1])
async def test_a_model_that_always_thinks_is_kept_from_it(
    always: Server, http: aiohttp.ClientSession, fields: dict[str, Any]
) -> None:
    """Symptom: `enable_thinking` false did nothing where the template has no such switch."""
    await ask(http, fields)
    thinking = always.engine.requests[-1].sampling.thinking
    assert thinking is not None
    assert (thinking.begun, thinking.budget) == (True, 0)


async def test_thoughts_that_are_not_told_apart_may_be_switched(
    server: Server, http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """As with --reasoning-parser none: the template's switch is there, a thought's length cannot be watched."""
    use_template(server, tmp_path, tiny_tokenizer.CHAT_TEMPLATE, splits=False)
    await ask(http, {"enable_thinking": True})
    body = {"model": "tiny", "messages": HELLO, "enable_thinking": True, "thinking_budget": 3}
    status, error = await refused(http, CHAT, body)
    assert (status, error["param"]) == (400, "thinking_budget")


async def test_tokenize_reads_the_fields_as_chat_does(server: Server, http: aiohttp.ClientSession) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for fields in ({"enable_thinking": False}, {"reasoning_effort": "none"}, {"thinking_budget": 3}, {"tools": tools}):
        async with http.post("/tokenize", json={"messages": HELLO, **fields}) as response:
            tokens = (await response.json())["tokens"]
        async with http.post(CHAT, json={"model": "tiny", "messages": HELLO, **fields}) as response:
            assert response.status == 200, await response.text()
        assert server.engine.requests[-1].prompt_token_ids == tokens
    status, error = await refused(http, "/tokenize", {"prompt": "Hi", "enable_thinking": False})
    assert (status, error["param"]) == (400, "enable_thinking")
