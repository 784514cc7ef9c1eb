"""Log-probabilities in the shapes of both APIs."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_runtime.core.sampling import TokenLogprobs
from tandem_runtime.server.choice import Scored
from tandem_runtime.server.protocol.answers import ChatLogprobs, CompletionLogprobs, ContentLogprob, TopLogprob
from tandem_runtime.text.detokenize import TokenBytes

_LEAST = -9999.0
"""JSON has no infinity; OpenAI writes this for a token that cannot occur."""


def for_chat(scored: Sequence[Scored], token_bytes: TokenBytes) -> ChatLogprobs:
    return ChatLogprobs(content=[_content(item.logprobs, token_bytes) for item in scored])


def for_completion(scored: Sequence[Scored], token_bytes: TokenBytes, *, offset: int) -> CompletionLogprobs:
    """`offset`: characters of echoed prompt before the content."""
    return CompletionLogprobs(
        tokens=[_text(item.logprobs.token_id, token_bytes) for item in scored],
        token_logprobs=[max(item.logprobs.logprob, _LEAST) for item in scored],
        top_logprobs=[_alternatives(item.logprobs, token_bytes) for item in scored],
        text_offset=[offset + item.offset for item in scored],
    )


def for_prompt(
    token_ids: Sequence[int], offsets: Sequence[int], logprobs: Sequence[TokenLogprobs], token_bytes: TokenBytes
) -> CompletionLogprobs:
    """Of an echoed prompt; nothing came before its first token, which has no probability."""
    return CompletionLogprobs(
        tokens=[_text(token_id, token_bytes) for token_id in token_ids],
        token_logprobs=[None, *(max(item.logprob, _LEAST) for item in logprobs)],
        top_logprobs=[None, *(_alternatives(item, token_bytes) for item in logprobs)],
        text_offset=list(offsets),
    )


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    return CompletionLogprobs(
        tokens=first.tokens + second.tokens,
        token_logprobs=first.token_logprobs + second.token_logprobs,
        top_logprobs=first.top_logprobs + second.top_logprobs,
        text_offset=first.text_offset + second.text_offset,
    )


def _content(item: TokenLogprobs, token_bytes: TokenBytes) -> ContentLogprob:
    raw = token_bytes[item.token_id]
    return ContentLogprob(
        token=_readable(raw),
        logprob=max(item.logprob, _LEAST),
        bytes=list(raw),
        top_logprobs=[
            TopLogprob(token=_readable(raw), logprob=max(value, _LEAST), bytes=list(raw))
            for raw, value in ((token_bytes[token_id], value) for token_id, value in item.top)
        ],
    )


def _alternatives(item: TokenLogprobs, token_bytes: TokenBytes) -> dict[str, float]:
    return {_text(token_id, token_bytes): max(value, _LEAST) for token_id, value in item.top}


def _readable(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _text(token_id: int, token_bytes: TokenBytes) -> str:
    """Here nothing but the text tells tokens apart: part of a character is spelled in bytes, as OpenAI does."""
    raw = token_bytes[token_id]
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
