"""The output items of one response as they grow, and the events that tell of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tandem_runtime.server.choice import Finish
from tandem_runtime.server.protocol.answers import ContentLogprob
from tandem_runtime.server.protocol.response_output import (
    ArgumentsDelta,
    ArgumentsDone,
    Event,
    FunctionCallOutput,
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
    """Reasoning, messages and function calls as the model writes them; one of them is open at a time.

    Iterate over what a method returns: the items change as its events come.
    """

    def __init__(self, answer_id: str) -> None:
        self.items: list[Item] = []
        """Complete but for the open one, which is the last."""
        self._answer_id = answer_id
        self._open: Item | None = None
        self._written: list[str] = []
        """Text or arguments of the open item."""

    @property
    def in_call(self) -> bool:
        return isinstance(self._open, FunctionCallOutput)

    def reasoning(self, text: str) -> Iterator[Event]:
        if not isinstance(item := self._open, ReasoningOutput):
            item = ReasoningOutput(id=self._id("rs"), status="in_progress", content=[])
            yield from self._begin(item)
            item.content = [ReasoningText(text="")]
            yield PartAdded(item_id=item.id, output_index=self._index, part=item.content[0])
        self._written.append(text)
        yield ReasoningDelta(item_id=item.id, output_index=self._index, delta=text)

    def text(self, text: str, logprobs: Sequence[ContentLogprob]) -> Iterator[Event]:
        if not isinstance(item := self._open, OutputMessage):
            item = OutputMessage(id=self._id("msg"), status="in_progress", content=[])
            yield from self._begin(item)
            item.content = [OutputText(text="")]
            yield PartAdded(item_id=item.id, output_index=self._index, part=item.content[0])
        self._written.append(text)
        item.content[0].logprobs += logprobs
        yield TextDelta(item_id=item.id, output_index=self._index, delta=text, logprobs=list(logprobs))

    def call(self, name: str, call_id: str) -> Iterator[Event]:
        yield from self._begin(
            FunctionCallOutput(id=self._id("fc"), call_id=call_id, name=name, arguments="", status="in_progress")
        )

    def arguments(self, text: str) -> Iterator[Event]:
        """More of the call that was begun last."""
        assert isinstance(self._open, FunctionCallOutput)
        self._written.append(text)
        yield ArgumentsDelta(item_id=self._open.id, output_index=self._index, delta=text)

    def finish(self, finish: Finish) -> Iterator[Event]:
        """An answer without any text has an empty message."""
        if not self.items:
            yield from self.text("", ())
        yield from self._close("incomplete" if finish == "length" else "completed")

    def cut_off(self) -> None:
        """No event will tell of the items any more."""
        for _ in self._close("incomplete"):
            pass

    def _begin(self, item: Item) -> Iterator[Event]:
        yield from self._close("completed")
        self._open = item
        self.items.append(item)
        yield ItemAdded(output_index=self._index, item=item)

    def _close(self, status: ItemStatus) -> Iterator[Event]:
        if self._open is None:
            return
        item, self._open = self._open, None
        written, self._written = "".join(self._written), []
        id, index = item.id, self._index
        item.status = status
        if isinstance(item, FunctionCallOutput):
            item.arguments = written
            yield ArgumentsDone(item_id=id, output_index=index, name=item.name, arguments=written)
        else:
            part = item.content[0]
            part.text = written
            if isinstance(part, ReasoningText):
                yield ReasoningDone(item_id=id, output_index=index, text=written)
            else:
                yield TextDone(item_id=id, output_index=index, text=written, logprobs=part.logprobs)
            yield PartDone(item_id=id, output_index=index, part=part)
        yield ItemDone(output_index=index, item=item)

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _id(self, kind: str) -> str:
        """Of an item that is about to begin; the same on every pod that takes part in a stream."""
        return f"{kind}_{self._answer_id}-{len(self.items) + 1}"
