"""From the request's text to token ids, without holding up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from tandem_runtime.core.errors import RequestError
from tandem_runtime.server.pod import LoadedModel
from tandem_runtime.server.protocol.messages import Message, for_template
from tandem_runtime.text.template import THINKING_SWITCH

INLINE_CHARACTERS = 4096
"""Up to about this length, encoding takes less than the detour over a thread costs others."""


def render_chat(
    model: LoadedModel,
    messages: list[Message],
    *,
    messages_param: str = "messages",
    template_kwargs: Mapping[str, Any] | None,
    enable_thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    now: float | None = None,
) -> str:
    """The prompt as text, as of `now` (Unix seconds). Raises `RequestError`."""
    template = model.tokenizer.template
    if template is None:
        raise RequestError("the model has no chat template; use /v1/completions", param=messages_param)
    if tools and not template.knows_tools:
        raise RequestError("the model's chat template has no tools in the hermes format", param="tools")
    variables = dict(template_kwargs or {})
    if enable_thinking is not None and template.switches_thinking:
        variables[THINKING_SWITCH] = enable_thinking
    return template.render(
        for_template(messages), messages_param=messages_param, tools=tools, variables=variables, now=now
    )


async def encode_placed(model: LoadedModel, text: str) -> tuple[list[int], list[int]]:
    """Token ids, and the characters of `text` before each."""
    return await asyncio.to_thread(model.tokenizer.encode_placed, text, add_special_tokens=True)


async def encode(model: LoadedModel, text: str, *, add_special_tokens: bool) -> list[int]:
    if len(text) <= INLINE_CHARACTERS:
        return model.tokenizer.encode(text, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(model.tokenizer.encode, text, add_special_tokens=add_special_tokens)
