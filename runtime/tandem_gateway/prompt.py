"""What the gateway reads of a request body: the model and the prompt. All else is the pod's to judge."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import orjson

from tandem_gateway.errors import BadRequest
from tandem_gateway.prefix import BLOCK_BYTES, BYTES_PER_TOKEN, MAX_BLOCKS, block_hashes

_MAX_BYTES = MAX_BLOCKS * BLOCK_BYTES
_CANONICAL = orjson.OPT_SORT_KEYS


@dataclass(frozen=True, slots=True)
class Prompt:
    model: str | None = None
    """None where the body names none, or not as a string."""
    blocks: list[int] = field(default_factory=list)
    """Chained hashes of the canonical prompt (see `prefix`)."""
    tokens: int = 0
    """Estimated length, for the prefill backlog."""
    stream: bool = False


def parse(route: str, body: bytes) -> Prompt:
    """Raises `BadRequest` for a body that is no JSON or is nested too deeply."""
    try:
        fields = orjson.loads(body)
        if not isinstance(fields, dict):
            return Prompt()
        text = _canonical(fields)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}") from error
    except orjson.JSONEncodeError as error:
        raise BadRequest("The prompt is nested too deeply.") from error
    model = fields.get("model")
    if not isinstance(model, str):
        model = None
    scope = f"{route}\0{model}".encode()
    return Prompt(model, block_hashes(scope, text), len(body) // BYTES_PER_TOKEN, fields.get("stream") is True)


def _canonical(fields: dict[str, Any]) -> bytes:
    """A longer conversation continues the bytes of its beginning, whatever the JSON's spacing or key order."""
    items = fields.get("messages", fields.get("input"))
    if isinstance(items, str):  # the first turn of /v1/responses; later ones send it as an item
        items = [{"role": "user", "content": items[:_MAX_BYTES]}]
    if isinstance(items, list):
        beginning = [fields[name] for name in ("tools", "instructions") if fields.get(name)]
        parts: list[bytes] = []
        size = 0
        for item in itertools.chain(beginning, items):
            parts.append(orjson.dumps(item, option=_CANONICAL))
            size += len(parts[-1])
            if size > _MAX_BYTES:
                break
        return b"\n".join(parts)
    prompt = fields.get("prompt")
    if isinstance(prompt, str):
        return prompt[:_MAX_BYTES].encode()
    return orjson.dumps(prompt) if isinstance(prompt, list) else b""
