"""What `langchain-openai` makes of a server, as JSON; see tests/processes/test_foreign_clients.py."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

CONVERSATION = [SystemMessage("Be brief."), HumanMessage("Hi."), AIMessage("Hello."), HumanMessage("Say it.")]


def main(base_url: str) -> None:
    def model(**options: Any) -> ChatOpenAI:
        settings: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 12, "max_retries": 0}
        return ChatOpenAI(base_url=base_url, api_key="none", **(settings | options))

    chat, responses = model(), model(use_responses_api=True)
    whole = chat.invoke(CONVERSATION)
    pieces = list(chat.stream(CONVERSATION, stream_usage=True))
    streamed = pieces[0]
    for piece in pieces[1:]:
        streamed += piece
    scored = model(logprobs=True, top_logprobs=2).invoke(CONVERSATION)
    several = model(n=2, temperature=1, seed=7).generate([CONVERSATION])
    answer = responses.invoke(CONVERSATION)
    print(
        json.dumps(
            {
                "invoke": whole.content,
                "usage": whole.usage_metadata["total_tokens"],
                "finish": whole.response_metadata["finish_reason"],
                "stream": streamed.content,
                "stream usage": streamed.usage_metadata["total_tokens"],
                "ainvoke": asyncio.run(chat.ainvoke(CONVERSATION)).content,
                "batch": [one.content for one in chat.batch([CONVERSATION, CONVERSATION])],
                "logprobs": len(scored.response_metadata["logprobs"]["content"]),
                "choices": len(several.generations[0]),
                "responses": answer.text,
                "responses status": answer.response_metadata["status"],
                "responses stream": "".join(piece.text for piece in responses.stream(CONVERSATION)),
                "refused": refusal(model(stop_sequences=["x"] * 17)),
            }
        )
    )


def refusal(chat: ChatOpenAI) -> str:
    try:
        chat.invoke("Hi")
    except Exception as error:  # its kind is part of the answer
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    main(sys.argv[1])
