"""One choice of an answer: turns the engine's tokens into reasoning, content, logprobs and counts. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from tandem_contract.handoff import RequestTrace

from tandem_runtime.core.sampling import TokenLogprobs
from tandem_runtime.engine.messages import EngineOutput
from tandem_runtime.text.detokenize import IncrementalDetokenizer
from tandem_runtime.text.reasoning import ReasoningParser
from tandem_runtime.text.stops import StopMatcher
from tandem_runtime.text.tool_calls import CallDelta, Piece, ToolCallParser

Finish = Literal["stop", "length", "tool_calls"]


class Scored(NamedTuple):
    logprobs: TokenLogprobs
    offset: int
    """Characters of content before this token."""


@dataclass(slots=True)
class Delta:
    """What is new in a choice."""

    reasoning: str = ""
    said: list[Piece] = field(default_factory=list)
    """Content and calls, in their order."""
    scored: list[Scored] = field(default_factory=list)
    finish: Finish | None = None
    outputs: list[EngineOutput] = field(default_factory=list)
    """Those that brought it about: the newest, and those before it that showed nothing."""
    held: Sequence[Scored] = ()
    """Logprobs that wait for their text to be shown."""

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.said or self.scored or self.finish)

    @property
    def content(self) -> str:
        return "".join([piece for piece in self.said if isinstance(piece, str)])

    @property
    def calls(self) -> list[CallDelta]:
        return [piece for piece in self.said if not isinstance(piece, str)]

    def say(self, piece: Piece) -> None:
        """What belongs together is one piece, however many tokens brought it."""
        match self.said[-1] if self.said else None, piece:
            case _, "":
                pass
            case str(before), str(text):
                self.said[-1] = before + text
            case CallDelta() as last, CallDelta(name=None, arguments=more):
                self.said[-1] = replace(last, arguments=last.arguments + more)
            case _:
                self.said.append(piece)


class Choice:
    """Stop strings apply to content only: one that occurs in a thought does not end the answer.

    Stop tokens leave neither text nor logprobs, and count as completion tokens.
    """

    def __init__(
        self,
        index: int,
        detokenizer: IncrementalDetokenizer,
        *,
        reasoning: ReasoningParser | None = None,
        tools: ToolCallParser | None = None,
        stops: Sequence[str] = (),
        min_tokens: int = 0,
        max_tokens: int | None = None,
    ) -> None:
        """Tokens after `max_tokens` are dropped: 0 scores a prompt, of which the engine samples one token."""
        self.index = index
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs] | None = None
        self.trace: RequestTrace | None = None
        self.finish: Finish | None = None
        self._detokenizer = detokenizer
        self._reasoning = reasoning
        self._tools = tools
        self._stops = StopMatcher(stops)
        self._min_tokens = min_tokens
        self._max_tokens = max_tokens
        self._fed = 0
        """Characters of content so far, those held back by the stop matcher included."""
        self._shown = 0
        """Characters of content that went out in earlier deltas."""
        self._unreleased: list[Scored] = []
        self._silent: list[EngineOutput] = []
        """Outputs since the last delta that showed something."""

    @property
    def reasoning_tokens(self) -> int:
        return self._reasoning.tokens if self._reasoning is not None else 0

    def accept(self, output: EngineOutput) -> Delta:
        """`finish` of the result is set when the choice is complete, which a stop string may bring about early."""
        assert self.finish is None, "nothing follows the end"
        if self.completion_tokens == 0:  # those of a resumed stream's first pod count
            self.cached_tokens = output.cached_tokens
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.trace = output.trace or self.trace
        delta = Delta()
        self._take(output, delta)
        if self._stops.stopped:
            delta.finish = "stop"
        elif self._calls_done:
            delta.say(self._stops.flush())
            delta.finish = "tool_calls"
        elif output.finish_reason is not None:
            self._flush(delta)
            stopped = self._stops.stopped or (output.finish_reason == "stop" and self._max_tokens != 0)
            delta.finish = "stop" if stopped else "length"
            if delta.finish == "stop" and self._tools is not None and self._tools.calls:
                delta.finish = "tool_calls"
        self.finish = delta.finish
        self._release(delta)
        self._shown += len(delta.content)
        delta.outputs = [*self._silent, output]
        delta.held = tuple(self._unreleased)
        self._silent = [] if delta else delta.outputs
        return delta

    def replayed(self, held: Sequence[Scored]) -> None:
        """All outputs of a delta were accepted once more, without logprobs; `held` as in that delta."""
        self._unreleased = list(held)
        self._silent = []

    def _take(self, output: EngineOutput, delta: Delta) -> None:
        last = len(output.token_ids) - 1
        for position, token_id in enumerate(output.token_ids):
            if self._max_tokens is not None and self.completion_tokens >= self._max_tokens:
                return
            self.completion_tokens += 1
            if position == last and output.stop_token_id is not None:
                return
            if output.logprobs is not None:
                self._unreleased.append(Scored(output.logprobs[position], self._fed))
            text = self._detokenizer.push(token_id)
            if self._reasoning is not None:
                reasoning, text = self._reasoning.push(text)
                delta.reasoning += reasoning
            self._feed(text, delta)
            if self._stops.stopped or self._calls_done:
                return
            self._release(delta)  # after each token: what goes out must not depend on how tokens come

    @property
    def _calls_done(self) -> bool:
        """Whether the answer ends here because no more calls are wanted."""
        return self._tools is not None and self._tools.done

    def _feed(self, text: str, delta: Delta) -> None:
        if self._tools is None:
            self._show(text, delta)
        else:
            self._say(self._tools.push(text), delta)

    def _say(self, pieces: Sequence[Piece], delta: Delta) -> None:
        for piece in pieces:
            if self._stops.stopped:
                return
            if isinstance(piece, str):
                self._show(piece, delta)
            else:
                delta.say(self._stops.flush())  # no stop string spans a call
                delta.say(piece)

    def _show(self, text: str, delta: Delta) -> None:
        self._fed += len(text)
        delta.say(text if self.completion_tokens <= self._min_tokens else self._stops.push(text))

    def _flush(self, delta: Delta) -> None:
        if self._reasoning is not None:
            reasoning, text = self._reasoning.flush()
            delta.reasoning += reasoning
            self._feed(text, delta)
        if self._tools is not None:
            self._say(self._tools.flush(), delta)
        delta.say(self._stops.flush())

    def _release(self, delta: Delta) -> None:
        """Logprobs go out with their text: those of held-back text wait, those of cut-off text never go."""
        shown = self._shown + len(delta.content)
        released = [scored for scored in self._unreleased if shown == self._fed or scored.offset < shown]
        delta.scored += released
        self._unreleased = self._unreleased[len(released) :]
