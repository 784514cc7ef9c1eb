"""What an API's request asks of the model's next turn in a conversation, however that API spells it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tandem_runtime.server.protocol.common import SampledRequest
from tandem_runtime.server.protocol.messages import Message
from tandem_runtime.server.protocol.structure import Structure
from tandem_runtime.server.protocol.thinking import ThinkingRequest
from tandem_runtime.server.protocol.tools import ToolUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    messages: list[Message]
    messages_param: str
    """The field that they came in."""
    tools: ToolUse
    structure: Structure | None
    max_tokens: int | None
    max_tokens_param: str
    logprobs: int | None
    """As `SamplingParams.logprobs`."""


class ConversationRequest(SampledRequest, ThinkingRequest, ABC):
    @abstractmethod
    def to_conversation(self) -> Conversation:
        """Raises `RequestError` where a structure cannot be enforced."""
