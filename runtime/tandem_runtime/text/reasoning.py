"""Splits `<think>...</think>` off the front of an answer (Qwen3's format), as the text streams by."""

from __future__ import annotations

from typing import Literal, NamedTuple

OPEN = "<think>"
CLOSE = "</think>"

State = Literal["start", "thinking", "answering"]


class ThinkingTokens(NamedTuple):
    """Of a vocabulary in which both tags are single tokens."""

    open_id: int
    close_id: int
    break_ids: tuple[int, ...]
    """Of one and two line breaks, so far as they are single tokens."""


class Split(NamedTuple):
    reasoning: str
    content: str


NOTHING = Split("", "")


def state_after_prompt(prompt: str) -> State:
    """Where the answer begins: a template may have opened the block (`<think>\\n`) or closed an empty one already."""
    end = prompt.rstrip()
    if end.endswith(OPEN):
        return "thinking"
    return "answering" if end.endswith(CLOSE) else "start"


class ReasoningParser:
    """Text in, reasoning and content out; tags may be cut anywhere. Line breaks that set the block off are dropped.

    With Qwen3's `/no_think` switch the model writes an empty block: it yields no reasoning and plain content.
    `tokens` counts the tokens of the block, its tags included; call `push` once per token.
    """

    __slots__ = ("_held", "_leading", "_undecided", "state", "tokens")

    def __init__(self, state: State = "start") -> None:
        self.state = state
        self.tokens = 0
        self._undecided = 0
        """Tokens seen before it is known whether they open a block."""
        self._held = ""
        """Text that may turn out to be (part of) a tag or a line break to be dropped."""
        self._leading = state != "start"
        """At the beginning of reasoning or content, where line breaks are dropped."""

    def push(self, text: str) -> Split:
        if self.state == "answering":
            return Split("", self._content(text))
        self._undecided += 1
        self._held += text
        if self.state == "start":
            self.state = self._after_start()
        if self.state == "thinking":
            self.tokens += self._undecided
            self._undecided = 0
            return self._think()
        if self.state == "answering":
            return Split("", self._take_held())
        return NOTHING

    def flush(self) -> Split:
        """At the end of the sequence: what was held back, as what it now must be."""
        held = self._take_held()
        return Split(held.rstrip("\n"), "") if self.state == "thinking" else Split("", held)

    def _after_start(self) -> State:
        text = self._held.lstrip()
        if text.startswith(OPEN):
            self._held, self._leading = text[len(OPEN) :], True
            return "thinking"
        return "start" if OPEN.startswith(text) else "answering"

    def _think(self) -> Split:
        text = self._held.lstrip("\n") if self._leading else self._held
        end = text.find(CLOSE)
        if end >= 0:
            self.state, self._held, self._leading = "answering", "", True
            return Split(text[:end].rstrip("\n"), self._content(text[end + len(CLOSE) :]))
        keep = _held_back(text)
        self._held = text[len(text) - keep :]
        shown = text[: len(text) - keep]
        self._leading = self._leading and not shown
        return Split(shown, "")

    def _content(self, text: str) -> str:
        if self._leading:
            text = text.lstrip("\n")
            self._leading = not text
        return text

    def _take_held(self) -> str:
        held, self._held = self._held, ""
        return held


def _held_back(text: str) -> int:
    """Length of the end of `text` that may be line breaks and the beginning of the closing tag."""
    tag = next((n for n in range(min(len(CLOSE) - 1, len(text)), 0, -1) if CLOSE.startswith(text[-n:])), 0)
    body = text[: len(text) - tag]
    return tag + len(body) - len(body.rstrip("\n"))
