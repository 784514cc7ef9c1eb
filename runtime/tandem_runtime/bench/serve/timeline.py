"""What one streamed answer said, and when. Pure: events and times go in, a record comes out."""

from __future__ import annotations

from typing import Any

import orjson

from tandem_runtime.bench.serve.metrics import RequestRecord


class StreamTimeline:
    """Collects the events of one `completions` or `chat.completions` stream.

    Tokens are never counted by chunks: their number is the server's own `usage`.
    """

    def __init__(self) -> None:
        self._chunk_times: list[float] = []
        self._first_choice: float | None = None
        self._last_choice = 0.0
        self._usage: dict[str, Any] | None = None
        self._done = False
        self._error: str | None = None

    @property
    def chunks(self) -> int:
        return len(self._chunk_times)

    def on_event(self, data: bytes, now: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        try:
            self._take(orjson.loads(data), now)
        except orjson.JSONDecodeError:
            self.fail(f"event is not JSON: {data[:80]!r}")
        except (AttributeError, KeyError, TypeError, ValueError):  # another server's shapes are not ours to trust
            self.fail(f"event of an unknown shape: {data[:80]!r}")

    def _take(self, event: dict[str, Any], now: float) -> None:
        if event.get("error") or event.get("object") == "error":
            self.fail(f"error in the stream: {error_message(event)}")
            return
        if choices := event.get("choices"):
            self._last_choice = now
            if self._first_choice is None:
                self._first_choice = now
            if _carries_text(choices[0]):
                self._chunk_times.append(now)
        if usage := event.get("usage"):
            self._usage = dict(usage)

    def fail(self, message: str) -> None:
        """The first failure is the one that is reported."""
        self._error = self._error or message

    def record(self, index: int, *, start: float, end: float, expected_output: int | None) -> RequestRecord:
        """`end` counts for failed requests only; `expected_output` is None where the server may stop early."""
        if self._error is None:
            self._error = self._what_is_missing(expected_output)
        usage = self._usage or {}
        # Tokens without any text (all special) still came at some time.
        times = self._chunk_times or ([] if self._first_choice is None else [self._first_choice])
        return RequestRecord(
            index=index,
            start=start,
            end=end if self._error else self._last_choice,
            input_tokens=usage.get("prompt_tokens", 0),
            output_tokens=usage.get("completion_tokens", 0),
            chunk_times=tuple(times),
            error=self._error,
        )

    def _what_is_missing(self, expected_output: int | None) -> str | None:
        if self._first_choice is None and not self._done:
            return "HTTP 200 without any event"
        if not self._done:
            return "stream ended without [DONE]"
        if self._usage is None:
            return "no usage in the stream: stream_options.include_usage not honoured"
        if self._first_choice is None:
            return "stream without any choice"
        got = self._usage.get("completion_tokens", 0)
        if expected_output is not None and got != expected_output:
            return f"asked for {expected_output} output tokens, got {got}: ignore_eos not honoured"
        return None


def error_message(body: dict[str, Any]) -> str:
    """Of OpenAI's `{"error": {"message"}}` and of the flatter shapes in use."""
    error = body.get("error", body)
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


def _carries_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    if delta is None:
        return bool(choice.get("text"))
    # An opening chunk that only names the role is no token.
    return any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls"))
