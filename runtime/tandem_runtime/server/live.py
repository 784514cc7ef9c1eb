"""Live streams on a pod's side: the records that go out with the events, and taking a stream up from them.

A resumed stream is a replay: the token ids of the records pass through fresh choices and a fresh format exactly as they
did at the first pod, and what that yields is dropped, as the client has it. So whatever keeps state on the way (the
detokenizer, stop strings, reasoning, penalties' history, event counters) is right by construction.
"""

from __future__ import annotations

import array
import asyncio
import hashlib
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from tandem_contract.handoff import RequestTrace
from tandem_contract.live_stream import comment

from tandem_runtime.core.errors import RequestError
from tandem_runtime.engine.client import EngineInfo
from tandem_runtime.engine.messages import EngineOutput, FinishReason
from tandem_runtime.server.choice import Choice, Delta, Scored
from tandem_runtime.server.errors import OtherAnswerError
from tandem_runtime.server.generation import ChoiceRequest
from tandem_runtime.server.protocol.convert import check_token_ids

SLICE = 500
"""Records replayed at once; others get their turn in between."""

Prompts = Sequence[Sequence[ChoiceRequest]]


class Origin(msgspec.Struct, frozen=True):
    """What the first pod chose and every pod after it must keep."""

    answer_id: str
    """Part of every id in the answer. Not the request's id: clients repeat those."""
    created: int
    """Unix seconds; also what chat templates take for now."""
    seed: int
    """Of a request that names none."""


class Ground(msgspec.Struct, frozen=True):
    """What an answer stands on. A pod where it is another would go on differently."""

    continuation: str
    """As in `PodStatus`."""
    prompt: str
    """`digest_of` the prompts' token ids."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One delta of one choice: enough to bring a fresh `Choice` from before it to after it."""

    choice: int = 0
    outputs: list[list[int]] = []
    """Token ids by engine output: what is held back may depend on how they came."""
    cached_tokens: int = 0
    """In a choice's first record."""
    finish_reason: FinishReason | None = None
    """The engine's, with the last of `outputs`."""
    stop_token_id: int | None = None
    held: list[Scored] = []
    """As `Delta.held`."""
    scored: list[Scored] = []
    """As `Delta.scored`, for formats that keep them."""
    trace: RequestTrace | None = None
    """In a choice's last record."""
    origin: Origin | None = None
    ground: Ground | None = None
    """Both in a stream's first record."""


class Envelope(msgspec.Struct, frozen=True):
    """See `live_stream.envelope`."""

    request: object
    records: list[Record]
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What became of a request so far, at other pods."""

    origin: Origin
    live: bool
    """Whether a gateway keeps records of the stream."""
    records: Sequence[Record] = ()
    elapsed_s: float = 0.0

    @classmethod
    def none(cls, seed: int, *, live: bool = False) -> Past:
        return cls(origin=Origin(answer_id=uuid.uuid4().hex, created=int(time.time()), seed=seed), live=live)

    def check(self, here: Ground) -> None:
        """Whether the stream goes on `here` as it began. Raises `OtherAnswerError`."""
        if not self.records:
            return
        began = self.records[0].ground
        if began is None or began.continuation != here.continuation:
            raise OtherAnswerError(
                "this stream began at a pod that answers differently (model, tokenizer, chat template, sampling "
                "defaults, context length or version)"
            )
        if began.prompt != here.prompt:
            raise OtherAnswerError("the prompt of this stream has other tokens here")


def open_envelope(body: object, seed: int) -> tuple[object, Past]:
    """The client's body and its past; `seed` is for a stream that has no record yet. Raises `RequestError`."""
    try:
        envelope = msgspec.convert(body, Envelope)
    except msgspec.ValidationError as error:
        raise RequestError(f"the records of this stream cannot be read: {error}") from error
    past = Past.none(seed, live=True)
    if envelope.records:
        first = envelope.records[0].origin
        if first is None:
            raise RequestError("the records of this stream lack their beginning")
        past = Past(origin=first, live=True, records=envelope.records, elapsed_s=envelope.elapsed_s)
    return envelope.request, past


def digest_of(prompts: Prompts) -> str:
    """Equal for equal token ids of equally many prompts."""
    digest = hashlib.blake2b(digest_size=16)
    for choices in prompts:
        token_ids = choices[0].request.prompt_token_ids
        digest.update(len(token_ids).to_bytes(8, "little") + array.array("I", token_ids).tobytes())
    return digest.hexdigest()


def record_of(
    choice: Choice,
    delta: Delta,
    *,
    first: bool,
    scored: Sequence[Scored] = (),
    origin: Origin | None = None,
    ground: Ground | None = None,
) -> bytes:
    """The comment that follows the events of `delta`; `first` of its choice; `origin` and `ground` of the stream."""
    last = delta.outputs[-1]
    record = Record(
        choice=choice.index,
        outputs=[output.token_ids for output in delta.outputs],
        cached_tokens=last.cached_tokens if first else 0,
        finish_reason=last.finish_reason,
        stop_token_id=last.stop_token_id,
        held=list(delta.held),
        scored=list(scored),
        trace=choice.trace if choice.finish is not None else None,
        origin=origin,
        ground=ground,
    )
    return comment(msgspec.json.encode(record))


async def take_up(prompts: Prompts, past: Past, info: EngineInfo, replay: Callable[[Choice, Delta], object]) -> Prompts:
    """Brings every choice to where the records leave it, and returns those that are left to run.

    `replay` is given each choice and delta as they were at the first pod. Raises `RequestError`.
    """
    choices = {item.choice.index: item.choice for prompt in prompts for item in prompt}
    outputs: dict[int, list[int]] = defaultdict(list)
    for count, record in enumerate(past.records, start=1):
        choice = choices.get(record.choice)
        if choice is None or choice.finish is not None or not record.outputs:
            raise RequestError("the records of this stream do not fit its request")
        for token_ids in record.outputs:
            check_token_ids(token_ids, info, param="records")
            outputs[choice.index] += token_ids
        replay(choice, _replayed(choice, record))
        if count % SLICE == 0:
            await asyncio.sleep(0)
    return [_continued(prompt, outputs) for prompt in prompts] if outputs else list(prompts)


def _replayed(choice: Choice, record: Record) -> Delta:
    *before, last = record.outputs
    for token_ids in before:
        choice.accept(EngineOutput(request_id="", token_ids=token_ids, cached_tokens=record.cached_tokens))
    delta = choice.accept(
        EngineOutput(
            request_id="",
            token_ids=last,
            cached_tokens=record.cached_tokens,
            finish_reason=record.finish_reason,
            stop_token_id=record.stop_token_id,
        )
    )
    choice.replayed(record.held)
    choice.trace = record.trace
    delta.scored = record.scored
    return delta


def _continued(prompt: Sequence[ChoiceRequest], outputs: dict[int, list[int]]) -> list[ChoiceRequest]:
    """The unfinished choices, of which the first one now leads: it carries the tickets, the others come after it."""
    left = [item for item in prompt if item.choice.finish is None]
    continued = []
    for item in left:
        request, before = item.request, outputs.get(item.choice.index, [])
        if len(before) >= request.sampling.max_tokens:
            raise RequestError("the records of this stream say that it has ended")
        if item is left[0]:
            request = msgspec.structs.replace(request, tickets=prompt[0].request.tickets, after="")
        else:
            request = msgspec.structs.replace(request, after=left[0].request.request_id)
        if before:
            sampling = msgspec.structs.replace(request.sampling, prompt_logprobs=None)
            request = msgspec.structs.replace(request, sampling=sampling, output_token_ids=before)
        continued.append(ChoiceRequest(item.choice, request))
    return continued
