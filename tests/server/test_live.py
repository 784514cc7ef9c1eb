"""Splicing, without a server: a choice taken up from any of its records goes on as if nothing had happened."""

from __future__ import annotations

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from tandem_contract.live_stream import envelope
from tandem_runtime.core.sampling import SamplingParams, TokenLogprobs
from tandem_runtime.engine.messages import EngineOutput, EngineRequest
from tandem_runtime.server.choice import Choice, Delta
from tandem_runtime.server.generation import ChoiceRequest
from tandem_runtime.server.live import Origin, Past, open_envelope, record_of, take_up
from tandem_runtime.text.detokenize import IncrementalDetokenizer, TokenBytes
from tandem_runtime.text.reasoning import ReasoningParser

PIECES = [b"a", b"b", b" ", b"\n", b"ab", b"<think>", b"</think>", b"\xe4", b"\xbd\xa0", b""]
TABLE = TokenBytes(lambda token_id: chr(token_id), lambda piece: PIECES[ord(piece)])
ORIGIN = Origin(answer_id="a", created=17, seed=4)


class _Info:
    vocab_size = len(PIECES)


def new_choice(stops: list[str], min_tokens: int) -> Choice:
    return Choice(0, IncrementalDetokenizer(TABLE), reasoning=ReasoningParser(), stops=stops, min_tokens=min_tokens)


def engine_outputs(tokens: list[int], sizes: list[int], *, start: int = 0) -> list[EngineOutput]:
    """Of the tokens after the first `start`, cut into outputs of the given sizes."""
    outputs, position = [], start
    for size in [*sizes, *([1] * len(tokens))]:
        part = tokens[position : position + size]
        logprobs = [TokenLogprobs(token, -float(i), 1, []) for i, token in enumerate(part, start=position)]
        position += size
        finish = "length" if position >= len(tokens) else None
        outputs.append(
            EngineOutput(
                request_id="r", token_ids=part, logprobs=logprobs, cached_tokens=8 - start, finish_reason=finish
            )
        )
        if finish:
            return outputs
    raise AssertionError("sizes are at least 1")


def shown(choice: Choice, outputs: list[EngineOutput]) -> list[Delta]:
    deltas = []
    for output in outputs:
        delta = choice.accept(output)
        if delta:
            deltas.append(delta)
        if delta.finish:
            break
    return deltas


def visible(deltas: list[Delta]) -> tuple[object, ...]:
    return (
        "".join(delta.reasoning for delta in deltas),
        "".join(delta.content for delta in deltas),
        [scored for delta in deltas for scored in delta.scored],
        deltas[-1].finish if deltas else None,
    )


@example(tokens=[2, 2, 2, 2, 0], sizes=[], later_sizes=[2], stops=[" "], min_tokens=0, cut_at=3)
@given(
    tokens=st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=24),
    sizes=st.lists(st.integers(1, 3), max_size=12),
    later_sizes=st.lists(st.integers(1, 3), max_size=12),
    stops=st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=3),
    min_tokens=st.integers(0, 6),
    cut_at=st.integers(1, 24),
)
async def test_any_cut_is_invisible(tokens, sizes, later_sizes, stops, min_tokens, cut_at) -> None:  # type: ignore[no-untyped-def]
    """The example: logprobs of text that a stop string cut off depended on how many tokens came at once."""
    first = new_choice(stops, min_tokens)
    deltas = shown(first, engine_outputs(tokens, sizes))
    cut = min(cut_at, len(deltas))
    records = b",".join(
        record_of(first, delta, first=index == 0, origin=ORIGIN if index == 0 else None)[1:-2]
        for index, delta in enumerate(deltas[:cut])
    )
    _, past = open_envelope(msgspec.json.decode(envelope(b"{}", records, elapsed_s=1.5)), seed=99)
    assert (past.origin, past.elapsed_s) == (ORIGIN, 1.5)

    second = new_choice(stops, min_tokens)
    request = EngineRequest(request_id="r", prompt_token_ids=[0], sampling=SamplingParams(max_tokens=len(tokens)))
    replayed: list[Delta] = []
    [left] = await take_up(
        [[ChoiceRequest(second, request)]],
        past,
        _Info(),
        lambda choice, delta: replayed.append(delta),  # type: ignore[arg-type]
    )
    assert len(replayed) == cut, "formats see the deltas of the first pod, one by one"
    assert [(d.reasoning, d.content) for d in replayed] == [(d.reasoning, d.content) for d in deltas[:cut]]
    later: list[Delta] = []
    if left:
        done = left[0].request.output_token_ids
        assert done == tokens[: len(done)]
        later = shown(second, engine_outputs(tokens, later_sizes, start=len(done)))
    assert visible(deltas[:cut] + later) == visible(deltas)
    assert (second.completion_tokens, second.reasoning_tokens) == (first.completion_tokens, first.reasoning_tokens)
    assert second.cached_tokens == 8


def test_an_empty_past_begins_anew() -> None:
    request, past = open_envelope(msgspec.json.decode(envelope(b'{"a": [1]}', b"", elapsed_s=0.25)), seed=99)
    assert request == {"a": [1]}
    assert past == Past(origin=msgspec.structs.replace(past.origin, seed=99), live=True)
