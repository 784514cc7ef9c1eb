"""The output items of one response as they grow, and the events that tell of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tandem_runtime.server.choice import Finish
from tandem_runtime.server.protocol.answers import ContentLogprob
from tandem_runtime.server.protocol.response_output import (
    Event,
    Item,
    ItemAdded,
    ItemDone,
    ItemStatus,
    OutputMessage,
    OutputText,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningOutput,
    ReasoningText,
    TextDelta,
    TextDone,
)


class OutputItems:
    """Reasoning, then a message. Iterate over what a method returns: the items change as its events come."""

    def __init__(self, request_id: str) -> None:
        self.items: list[Item] = []
        """Complete but for the last one, until `finish`."""
        self._request_id = request_id
        self._open: ReasoningOutput | OutputMessage | None = None

    def reasoning(self, text: str) -> Iterator[Event]:
        if not isinstance(item := self._open, ReasoningOutput):
            yield from self._close("completed")
            self._open = item = ReasoningOutput(id=self._id("rs"), status="in_progress", content=[])
            yield from self._begin(item, ReasoningText(text=""))
            item.content = [ReasoningText(text="")]
        item.content[0].text += text
        yield ReasoningDelta(item_id=item.id, output_index=self._index, delta=text)

    def text(self, text: str, logprobs: Sequence[ContentLogprob]) -> Iterator[Event]:
        if not isinstance(item := self._open, OutputMessage):
            yield from self._close("completed")
            self._open = item = OutputMessage(id=self._id("msg"), status="in_progress", content=[])
            yield from self._begin(item, OutputText(text=""))
            item.content = [OutputText(text="")]
        part = item.content[0]
        part.text += text
        part.logprobs = [*part.logprobs, *logprobs]
        yield TextDelta(item_id=item.id, output_index=self._index, delta=text, logprobs=list(logprobs))

    def finish(self, finish: Finish) -> Iterator[Event]:
        """An answer without any text has an empty message."""
        if not self.items:
            yield from self.text("", ())
        yield from self._close("completed" if finish == "stop" else "incomplete")

    def _begin(self, item: ReasoningOutput | OutputMessage, part: ReasoningText | OutputText) -> Iterator[Event]:
        self.items.append(item)
        yield ItemAdded(output_index=self._index, item=item)
        yield PartAdded(item_id=item.id, output_index=self._index, part=part)

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        if self._open is None:
            return
        item, self._open = self._open, None
        item.status = status
        id, index = item.id, self._index
        if isinstance(item, ReasoningOutput):
            yield ReasoningDone(item_id=id, output_index=index, text=item.content[0].text)
        else:
            part = item.content[0]
            yield TextDone(item_id=id, output_index=index, text=part.text, logprobs=part.logprobs)
        yield PartDone(item_id=id, output_index=index, part=item.content[0])
        yield ItemDone(output_index=index, item=item)

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _id(self, kind: str) -> str:
        return f"{kind}_{self._request_id}-{len(self.items)}"
