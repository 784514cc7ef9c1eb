"""POST /tokenize and /detokenize."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from tandem_runtime.server.intake import read_json
from tandem_runtime.server.keys import POD
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.server.prompts import encode, render_chat
from tandem_runtime.server.protocol.answers import DetokenizeAnswer, TokenizeAnswer
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.convert import check_token_ids
from tandem_runtime.server.protocol.tokens import DetokenizeRequest, TokenizeRequest

SLICE_TOKENS = 4096
"""Take under a millisecond to decode."""


async def tokenize(request: web.Request) -> web.Response:
    body = parse(TokenizeRequest, await read_json(request))
    model = request.app[POD].model(body.model)
    token_ids = await _token_ids(model, body)
    strings = await _strings(model, token_ids) if body.return_token_strs else None
    return _json(
        TokenizeAnswer(
            count=len(token_ids), max_model_len=model.info.max_model_len, tokens=token_ids, token_strs=strings
        )
    )


async def detokenize(request: web.Request) -> web.Response:
    body = parse(DetokenizeRequest, await read_json(request))
    model = request.app[POD].model(body.model)
    check_token_ids(body.tokens, model.info, param="tokens")
    return _json(DetokenizeAnswer(prompt=await asyncio.to_thread(model.tokenizer.decode, body.tokens)))


async def _token_ids(model: LoadedModel, body: TokenizeRequest) -> list[int]:
    if body.messages is not None:
        text = render_chat(
            model,
            body.messages,
            template_kwargs=body.template_variables,
            enable_thinking=body.thinks,
            tools=body.tool_use().for_template,
        )
        return await encode(model, text, add_special_tokens=False)
    assert body.prompt is not None
    return await encode(model, body.prompt, add_special_tokens=body.add_special_tokens)


async def _strings(model: LoadedModel, token_ids: list[int]) -> list[str]:
    # A thread would hold the GIL for most of the time; between slices others have their turn.
    strings: list[str] = []
    for start in range(0, len(token_ids), SLICE_TOKENS):
        strings += model.tokenizer.decode_each(token_ids[start : start + SLICE_TOKENS])
        await asyncio.sleep(0)
    return strings


def _json(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
