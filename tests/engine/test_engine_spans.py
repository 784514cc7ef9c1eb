"""What whole engines, with real transfers between them, tell of a traced request. Nothing of any other."""

from __future__ import annotations

import random
import time

import msgspec
import pytest
from support.engine_pods import Pod, eventually, pods, prompt
from support.spans import CALLER, TRACE_ID
from support.token_engine import token_fingerprint
from support.token_model import continue_text
from tandem_contract import handoff
from tandem_runtime.engine.control import decode as decode_message
from tandem_runtime.engine.messages import Abort
from tandem_tracing.context import TraceContext
from tandem_tracing.spans import FinishedSpan

REQUEST = TraceContext(TRACE_ID, CALLER, "vendor=1")


def one(spans: list[FinishedSpan], name: str) -> FinishedSpan:
    [found] = [span for span in spans if span.name == name]
    return found


def below(spans: list[FinishedSpan], parent: FinishedSpan | TraceContext) -> list[str]:
    """Names of a span's children, in the order of their beginning."""
    own = parent if isinstance(parent, TraceContext) else parent.context
    return [span.name for span in sorted(spans, key=lambda span: span.started) if span.parent_id == own.span_id]


def check(spans: list[FinishedSpan], began: float) -> None:
    assert len({span.context.span_id for span in spans}) == len(spans)
    for span in spans:
        assert (span.context.trace_id, span.context.state) == (REQUEST.trace_id, REQUEST.state)
        assert began <= span.started <= span.ended <= time.monotonic()
    known = {span.context.span_id: span for span in spans}
    for span in spans:
        if parent := known.get(span.parent_id):
            assert parent.started <= span.started, f"{span.name} begins before {parent.name}"
            # A prefill pod's job ends with the decode pod's acknowledgement, which follows the handoff.
            assert span.ended <= parent.ended or span.kind == "server", f"{span.name} ends after {parent.name}"
        else:
            assert span.parent_id == REQUEST.span_id


def test_a_handoff_is_told_by_both_sides(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    began, tokens = time.monotonic(), prompt(random.Random(1), 90)
    answer = decode.ask("r", tokens, 6, [prefill.ticket("r")], trace=REQUEST)
    assert answer.wait() == continue_text(tokens, 6)
    prefill.wait_idle()
    check(decode.spans + prefill.spans, began)
    assert below(decode.spans, REQUEST) == ["handoff", "queue", "first_token", "decode"]
    attempt = one(decode.spans, "handoff")
    assert (attempt.kind, attempt.error) == ("client", None)
    assert attempt.attributes == {"tandem.request_id": "r", "tandem.prefill.pod": "1"}
    assert below(decode.spans, attempt) == ["transfer"]
    assert one(decode.spans, "decode").attributes["gen_ai.usage.output_tokens"] == 6
    assert below(prefill.spans, attempt) == ["prefill"]
    job = one(prefill.spans, "prefill")
    assert (job.kind, job.error) == ("server", None)
    assert job.attributes["tandem.prefill.tokens"] == 89
    assert below(prefill.spans, job)[:2] == ["queue", "reserve"]
    assert sorted(below(prefill.spans, job)[2:]) == ["compute", "transfer"]
    assert one(prefill.spans, "compute").ended < job.ended, "the last pages and the acknowledgement come after it"
    trace = answer.last.trace
    for side in (decode, prefill):
        moved = one(side.spans, "transfer").attributes
        assert moved == {"tandem.handoff.pages": trace.handoff_pages, "tandem.handoff.bytes": trace.handoff_bytes}
        assert moved["tandem.handoff.pages"] == 23


def test_what_is_not_traced_leaves_no_span(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    decode.ask("r", prompt(random.Random(2), 40), 3, [prefill.ticket("r")]).wait()
    decode.ask("s", prompt(random.Random(3), 40), 3).wait()
    prefill.wait_idle()
    assert decode.spans == prefill.spans == []


def test_a_prompt_found_in_the_prefill_pods_cache_is_told(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    tokens = prompt(random.Random(4), 41)
    with pods(("decode", "3", {})) as [other]:
        other.wire.add(prefill)
        prefill.wire.add(other)
        decode.ask("first", tokens, 2, [prefill.ticket("first")]).wait()
        prefill.wait_idle()
        decode.ask("second", [*tokens[:21], 5, 6, 7, 8, 9], 2, [prefill.ticket("second")], trace=REQUEST).wait()
        prefill.wait_idle()
    assert one(prefill.spans, "prefill").attributes["tandem.prefill.cached_tokens"] == 20


def test_a_failover_is_an_attempt_after_an_attempt() -> None:
    with pods(("prefill", "1", {}), ("prefill", "2", {}), ("decode", "3", {})) as (lost, other, decode):
        decode.wire.lost.add(lost.url)
        began, tokens = time.monotonic(), prompt(random.Random(5), 30)
        decode.ask("r", tokens, 5, [lost.ticket("r"), other.ticket("r")], trace=REQUEST).wait()
        other.wait_idle()
        check(decode.spans + other.spans, began)
        first, second = [span for span in decode.spans if span.name == "handoff"]
        assert first.error is not None
        assert first.error[0] == "unreachable"
        assert second.error is None
        assert below(decode.spans, first) == []
        assert below(other.spans, second) == ["prefill"]
        assert below(decode.spans, REQUEST) == ["handoff", "handoff", "queue", "first_token", "decode"]


def test_local_prefill_is_told_with_the_reason(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    decode.wire.lost.add(prefill.url)
    began, tokens = time.monotonic(), prompt(random.Random(6), 30)
    decode.ask("r", tokens, 5, [prefill.ticket("r")], trace=REQUEST).wait()
    check(decode.spans, began)
    assert below(decode.spans, REQUEST) == ["handoff", "queue", "prefill", "decode"]
    assert one(decode.spans, "prefill").attributes == {
        "tandem.request_id": "r",
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "tandem.handoff.fallback": "unreachable",
    }


def test_without_a_ticket_there_is_no_handoff_to_tell(trio: tuple[Pod, Pod]) -> None:
    _, decode = trio
    decode.ask("r", prompt(random.Random(7), 30), 5, trace=REQUEST).wait()
    assert below(decode.spans, REQUEST) == ["queue", "prefill", "decode"]
    assert "tandem.handoff.fallback" not in one(decode.spans, "prefill").attributes


def test_a_request_aborted_in_its_handoff_leaves_no_orphan(trio: tuple[Pod, Pod]) -> None:
    prefill, decode = trio
    prefill.runner.gate.clear()
    began = time.monotonic()
    decode.ask("r", prompt(random.Random(8), 90), 5, [prefill.ticket("r")], trace=REQUEST)
    eventually(lambda: prefill.call(lambda: prefill.scheduler.counters.running))
    decode.inbox.put(Abort("r"))
    prefill.runner.gate.set()
    decode.wait_idle()
    prefill.wait_idle()
    check(decode.spans + prefill.spans, began)
    assert below(decode.spans, REQUEST) == ["handoff"]
    attempt = one(decode.spans, "handoff")
    assert attempt.error is not None
    assert attempt.error[0] == "aborted"
    [job] = [span for span in prefill.spans if span.name == "prefill"]
    assert job.parent_id == attempt.context.span_id
    assert job.error is not None


def test_a_deadline_is_the_failure_of_what_was_under_way(trio: tuple[Pod, Pod]) -> None:
    _, decode = trio
    decode.runner.gate.clear()
    answer = decode.ask("r", prompt(random.Random(9), 30), 5, trace=REQUEST, deadline_s=0.05)
    assert answer.done.wait(10)
    decode.runner.gate.set()
    assert answer.last.finish_reason == "deadline"
    assert below(decode.spans, REQUEST) == ["queue", "prefill"]
    assert [span.error and span.error[0] for span in decode.spans] == [None, "deadline"]


def job_for(decode: Pod, **trace: str) -> handoff.PrefillJob:
    return handoff.PrefillJob(
        job_id="j",
        request_id="r",
        ticket="",
        token_ids=[1, 2, 3],
        held_tokens=0,
        fingerprint=token_fingerprint(),
        decode_url=decode.url,
        decode_incarnation="d",
        **trace,
    )


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{TRACE_ID}-{CALLER}-00"])
def test_a_job_without_a_recorded_trace_is_done_all_the_same(trio: tuple[Pod, Pod], traceparent: str) -> None:
    prefill, decode = trio
    job = job_for(decode, traceparent=traceparent, tracestate="=,=;")
    assert prefill.wire.post(prefill, handoff.PREFILL_PATH, msgspec.json.encode(job))[0] == 202
    prefill.wait_idle()
    assert prefill.spans == []


def test_pods_of_before_and_after_tracing_understand_each_other(trio: tuple[Pod, Pod]) -> None:
    """A rollout pairs both: what an older pod leaves out is empty, what it does not know it skips."""
    prefill, decode = trio
    job = job_for(decode, traceparent=REQUEST.traceparent)
    fields = msgspec.json.decode(msgspec.json.encode(job))
    old = {name: value for name, value in fields.items() if name not in ("traceparent", "tracestate")}
    assert prefill.wire.post(prefill, handoff.PREFILL_PATH, msgspec.json.encode(old))[0] == 202
    newer = msgspec.json.encode(fields | {"baggage": "what this version does not know"})
    assert decode_message(newer, handoff.PrefillJob) == job
    prefill.wait_idle()
