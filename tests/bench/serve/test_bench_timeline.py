from __future__ import annotations

import json
from typing import Any

import pytest
from tandem_runtime.bench.serve.metrics import RequestRecord
from tandem_runtime.bench.serve.timeline import StreamTimeline

USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
FINISH = {"choices": [{"text": "", "finish_reason": "length"}]}


def text(value: str) -> dict[str, Any]:
    return {"choices": [{"text": value}]}


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields}]}


def play(*events: dict[str, Any] | bytes, expected: int | None = 2) -> RequestRecord:
    """Events come a second apart, the first at 1; the connection ends at 99."""
    timeline = StreamTimeline()
    for second, event in enumerate(events, start=1):
        timeline.on_event(event if isinstance(event, bytes) else json.dumps(event).encode(), float(second))
    return timeline.record(0, start=0.0, end=99.0, expected_output=expected)


def test_a_complete_answer() -> None:
    record = play(text("a"), text("b"), FINISH, USAGE, b"[DONE]")
    assert record.ok
    assert record.chunk_times == (1.0, 2.0)
    assert record.end == 3.0
    assert (record.input_tokens, record.output_tokens) == (5, 2)


def test_an_opening_role_chunk_is_no_token() -> None:
    record = play(delta(role="assistant", content=""), delta(content="a"), USAGE, b"[DONE]")
    assert record.ttft == 2.0


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "content"])
def test_reasoning_is_text_too(field: str) -> None:
    assert play(delta(**{field: "hm"}), USAGE, b"[DONE]").ttft == 1.0


def test_tokens_that_are_all_special_still_have_a_ttft() -> None:
    record = play(text(""), text(""), USAGE, b"[DONE]")
    assert record.ok
    assert record.ttft == 1.0


def test_an_empty_error_is_none() -> None:
    assert play(text("a") | {"error": None}, USAGE | {"error": None}, b"[DONE]").ok


def test_usage_on_the_last_choice_counts() -> None:
    assert play(text("a") | {"usage": USAGE["usage"]}, b"[DONE]").output_tokens == 2


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ((), "HTTP 200 without any event"),
        ((text("a"), USAGE), r"stream ended without \[DONE\]"),
        ((text("a"), b"[DONE]"), "no usage"),
        ((USAGE, b"[DONE]"), "without any choice"),
        ((b"<html>", b"[DONE]"), "not JSON"),
        ((text("a"), {"error": {"message": "boom"}}, b"[DONE]"), "error in the stream: boom"),
        ((text("a"), {"object": "error", "message": "boom"}, b"[DONE]"), "error in the stream: boom"),
        (({"error": "boom"},), "error in the stream: boom"),
        ((b"5", b"[DONE]"), "event of an unknown shape: b'5'"),
        (({"choices": ["a"]}, b"[DONE]"), "event of an unknown shape"),
        (({"choices": {"text": "a"}}, b"[DONE]"), "event of an unknown shape"),
        ((text("a"), {"usage": "two"}, b"[DONE]"), "event of an unknown shape"),
    ],
)
def test_what_goes_wrong_is_named(events: tuple[dict[str, Any] | bytes, ...], message: str) -> None:
    record = play(*events)
    assert not record.ok
    assert record.end == 99.0
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(record.error)


def test_wrong_length_is_a_failure_only_where_a_length_was_fixed() -> None:
    events = (text("a"), USAGE, b"[DONE]")
    assert play(*events, expected=64).error == "asked for 64 output tokens, got 2: ignore_eos not honoured"
    assert play(*events, expected=None).ok
