"""API requests to engine requests, without a server."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from support.scripted_engine import ScriptedEngine
from tandem_contract.ticket import Ticket
from tandem_runtime.core.errors import PromptTooLongError, RequestError
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine import ipc
from tandem_runtime.engine.messages import Choices, EngineRequest, SignedTicket
from tandem_runtime.server.choice import Choice
from tandem_runtime.server.generation import ChoiceRequest
from tandem_runtime.server.live import Origin, Past, Record, take_up
from tandem_runtime.server.protocol.base import parse
from tandem_runtime.server.protocol.chat import ChatRequest
from tandem_runtime.server.protocol.convert import to_engine_requests
from tandem_runtime.text.detokenize import IncrementalDetokenizer, TokenBytes

PERMISSION = Ticket(
    request_id="r", prefill_host="p", prefill_port=1, prefill_incarnation="i", nonce="n", expires_at=0.0
)
INFO = ScriptedEngine(eos_token_ids=(2, 3)).info


def convert(prompt: list[int] | None = None, max_tokens: int | None = 8, **fields: Any) -> list[EngineRequest]:
    request = parse(ChatRequest, {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields})
    return to_engine_requests(
        request,
        prompt or [1, 2, 3],
        request_id="r-0",
        info=INFO,
        prompt_param="messages",
        max_tokens=max_tokens,
        seed=11,
        deadline_s=60.0,
    )


def test_defaults() -> None:
    (request,) = convert()
    assert request == EngineRequest(
        request_id="r-0-0",
        prompt_token_ids=[1, 2, 3],
        prompt_param="messages",
        sampling=SamplingParams(max_tokens=8, seed=11, stop_token_ids=(2, 3)),
        deadline_s=60.0,
    )


def test_everything() -> None:
    fields: dict[str, Any] = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.2,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"7": -100},
        "seed": 5,
        "stop_token_ids": [9],
        "min_tokens": 2,
    }
    (request,) = convert(**fields, priority=-3, cache_salt="tenant")
    expected = {**fields, "max_tokens": 8, "logit_bias": {7: -100.0}, "stop_token_ids": (2, 3, 9)}
    assert request.sampling == SamplingParams(**expected)
    assert (request.priority, request.cache_salt) == (-3, "tenant")


def test_choices_differ_in_seed_and_follow_the_first() -> None:
    requests = convert(n=3, seed=-1)
    assert [request.sampling.seed for request in requests] == [2**63 - 1, 0, 1]
    assert [request.after for request in requests] == ["", "r-0-0", "r-0-0"]
    assert len({request.request_id for request in requests}) == 3


def test_ignore_eos_leaves_only_the_clients_stop_tokens() -> None:
    assert convert(ignore_eos=True, stop_token_ids=[9])[0].sampling.stop_token_ids == (9,)


def test_without_a_limit_the_context_is_the_limit() -> None:
    assert convert(max_tokens=None)[0].sampling.max_tokens == INFO.max_model_len - 3


@pytest.mark.parametrize(("length", "max_tokens"), [(256, None), (255, 2), (300, 1)])
def test_what_does_not_fit_is_refused(length: int, max_tokens: int | None) -> None:
    with pytest.raises(PromptTooLongError, match=rf"{length} tokens.*256"):
        convert([1] * length, max_tokens)


def test_what_just_fits_is_not() -> None:
    assert convert([1] * 255, 1)[0].sampling.max_tokens == 1


def test_top_k_all() -> None:
    assert convert(top_k=-1)[0].sampling.top_k == 0


def test_min_tokens_beyond_max_tokens() -> None:
    with pytest.raises(RequestError, match="min_tokens"):
        convert(min_tokens=9)


def test_choices_send_what_they_share_once() -> None:
    """16 choices of one prompt used to be 16 messages to the engine process, each with the whole prompt."""
    apart = convert(prompt=list(range(200)), n=16, logit_bias={str(id): 1 for id in range(50)})
    message = Choices.of(apart)
    sent = ipc.encode(message)
    assert len(sent) < 2 * len(ipc.encode(apart[0])) < 0.2 * sum(len(ipc.encode(request)) for request in apart)
    received = ipc.decode_to_engine(sent)
    assert isinstance(received, Choices)
    assert received.requests() == apart


async def test_choices_of_a_resumed_stream_arrive_as_they_were_sent() -> None:
    def choice(index: int, request: EngineRequest) -> ChoiceRequest:
        return ChoiceRequest(Choice(index, IncrementalDetokenizer(TokenBytes(lambda id: "a", str.encode))), request)

    ticket = SignedTicket(PERMISSION, "signed")
    first, *others = convert(n=3, seed=2**63 - 2)
    prompt = [replace(first, tickets=[ticket]), *others]
    prompt = [replace(each, sampling=replace(each.sampling, prompt_logprobs=1)) for each in prompt]
    records = [
        Record(choice=0, outputs=[[7]], finish_reason="stop", origin=Origin(answer_id="a", created=1, seed=2)),
        Record(choice=2, outputs=[[8], [9]]),
    ]
    past = Past(origin=Origin(answer_id="a", created=1, seed=2), live=True, records=records)
    chosen = [choice(index, request) for index, request in enumerate(prompt)]
    [left] = await take_up([chosen], past, INFO, lambda choice, delta: None)
    requests = [item.request for item in left]
    assert [request.output_token_ids for request in requests] == [[], [8, 9]]
    assert [request.sampling.seed for request in requests] == [2**63 - 1, 0]
    received = ipc.decode_to_engine(ipc.encode(Choices.of(requests)))
    assert isinstance(received, Choices)
    assert received.requests() == requests
