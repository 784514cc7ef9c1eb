"""What LlamaIndex's `OpenAILike` makes of a server, as JSON; see tests/processes/test_foreign_clients.py."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.llms.openai_like import OpenAILike

CONVERSATION = [
    ChatMessage(role=MessageRole.SYSTEM, content="Be brief."),
    ChatMessage(role=MessageRole.USER, content="Hi."),
    ChatMessage(role=MessageRole.ASSISTANT, content="Hello."),
    ChatMessage(role=MessageRole.USER, content="Say it."),
]


def main(base_url: str) -> None:
    def model(**options: Any) -> OpenAILike:
        settings: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 12, "max_retries": 0}
        return OpenAILike(api_base=base_url, api_key="none", context_window=4096, **(settings | options))

    chat, complete = model(is_chat_model=True), model(is_chat_model=False)
    print(
        json.dumps(
            {
                "chat": chat.chat(CONVERSATION).message.content,
                "stream": "".join(piece.delta or "" for piece in chat.stream_chat(CONVERSATION)),
                "achat": asyncio.run(chat.achat(CONVERSATION)).message.content,
                "complete": complete.complete("Once upon a time").text,
                "stream complete": "".join(piece.delta or "" for piece in complete.stream_complete("Once upon a time")),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
