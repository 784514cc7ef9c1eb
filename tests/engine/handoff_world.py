"""Prefill and decode engines with everything between them in the test's hand: one thread, one clock, no sockets.

Whole engines (loop, scheduler, coordinators, transfer rules) on a token model. Nothing happens by itself: the test
decides when a step is computed, a message arrives, is lost or doubled, bytes move, a report is heard, time passes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from engine.handoff_pod import Call, Fabric, Pod
from support.token_engine import Role
from support.token_model import continue_text
from tandem_contract.ticket import Ticket
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine.messages import (
    Abort,
    ControlCall,
    ControlReply,
    EngineOutput,
    EngineRequest,
    SignedTicket,
)


@dataclass
class Asked:
    """A client's request, which may go on at another pod after its own restarts."""

    request: EngineRequest
    pod: Pod
    outputs: list[int] = field(default_factory=list)
    finish: str | None = None
    aborted: bool = False


class World:
    def __init__(self, num_pages: int) -> None:
        self.now = 0.0
        self.fabric = Fabric()
        self.calls: list[Call] = []
        """Sent, and neither answered nor timed out."""
        self.replies: list[tuple[Call, ControlReply]] = []
        self._delivered: dict[int, Call] = {}
        self._ids = itertools.count(1)
        self.asked: dict[str, Asked] = {}
        self.pods: dict[str, Pod] = {}
        roles: dict[str, Role] = {"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode"}
        for name, role in roles.items():
            pages = num_pages if role == "decode" else 2 * num_pages
            self.pods[name] = Pod(self, name, role, 0, pages)

    # What a client does.

    def ask(
        self, prompt: list[int], max_tokens: int, *, decode: str, prefill: list[str], deadline_s: float | None = None,
        after: str = "", outputs: list[int] | None = None,
    ) -> str:  # fmt: skip
        request = EngineRequest(
            request_id=f"r{len(self.asked)}",
            prompt_token_ids=prompt,
            output_token_ids=outputs or [],
            sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0),
            tickets=[self._ticket(self.pods[name]) for name in prefill],
            deadline_s=deadline_s,
            after=after,
        )
        pod = self.pods[decode]
        self.asked[request.request_id] = Asked(request, pod, list(outputs or []))
        pod.hear(request)
        return request.request_id

    def abort(self, request_id: str) -> None:
        asked = self.asked[request_id]
        asked.aborted = True
        asked.pod.hear(Abort(request_id))

    def unfinished(self) -> list[str]:
        return [key for key, asked in self.asked.items() if asked.finish is None and not asked.aborted]

    def told(self, output: EngineOutput) -> None:
        asked = self.asked[output.request_id]
        assert asked.finish is None, "news after the end"
        asked.outputs += output.token_ids
        asked.finish = output.finish_reason
        prompt = asked.request.prompt_token_ids
        right = continue_text(prompt, asked.request.sampling.max_tokens)
        assert asked.outputs == right[: len(asked.outputs)], "the previous prompt's KV answers this prompt"
        assert asked.finish != "length" or len(asked.outputs) == len(right)

    # What the network does.

    def deliver(self, call: Call, *, again: bool = False) -> None:
        """`again`: a copy of the message comes later, whose answer nobody waits for."""
        target = next((pod for pod in self.pods.values() if pod.url == call.message.url), None)
        assert target is not None
        call_id = next(self._ids)
        if not call.delivered:
            self._delivered[call_id] = call
            call.delivered = not again
        target.hear(ControlCall(call_id=call_id, path=call.message.path, body=call.message.body))

    def answer(self, reply: ControlReply) -> None:
        if call := self._delivered.pop(reply.call_id, None):
            self.replies.append(
                (call, ControlReply(call_id=call.message.call_id, status=reply.status, body=reply.body))
            )

    def deliver_reply(self, index: int) -> None:
        call, reply = self.replies.pop(index)
        if call in self.calls:
            self.calls.remove(call)
            call.origin.hear(reply)

    def lose(self, call: Call) -> None:
        """The connection breaks before or after the message arrived; the caller cannot tell which."""
        self.calls.remove(call)
        call.origin.hear(ControlReply(call_id=call.message.call_id, status=0, body=b"connection reset"))

    def restart(self, name: str) -> list[Asked]:
        """Returns the requests that went down with the pod."""
        old = self.pods[name]
        for call in [call for call in self.calls if call.message.url == old.url and call.delivered]:
            self.lose(call)
        self.calls = [call for call in self.calls if call.origin is not old]
        old.close()
        old.frozen = True
        self.pods[name] = Pod(self, name, old.role, old.number + 1, old.num_pages)
        lost = [asked for asked in self.asked.values() if asked.pod is old and asked.finish is None]
        for asked in lost:
            asked.finish = "lost"
        return [asked for asked in lost if not asked.aborted]

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for call in [call for call in self.calls if call.due <= self.now]:
            self.lose(call)
        for pod in self.pods.values():
            pod.hear(*pod.timers.due())

    # The end.

    def check(self) -> None:
        for pod in self.pods.values():
            pod.check()

    def settle(self) -> None:
        """Everything works from now on; everybody must come to rest, with an end to every request."""
        for pod in self.pods.values():
            pod.frozen = False
            pod.run()
        for _ in range(5000):
            if not self.advance():
                break
            self.check()
        assert not self.unfinished(), "requests hang"
        for pod in self.pods.values():
            pod.check_idle()

    def advance(self) -> bool:
        """One thing that can happen, and time passes only when nothing else can; False when all is quiet."""
        if self.fabric.work:
            self.fabric.move()
        elif undelivered := [call for call in self.calls if not call.delivered]:
            self.deliver(undelivered[0])
        elif self.replies:
            self.deliver_reply(0)
        elif reporting := [pod for pod in self.pods.values() if pod.reports]:
            reporting[0].hear_report()
        elif computing := [pod for pod in self.pods.values() if pod.plans]:
            computing[0].step()
        else:
            soon = min(pod.timers.next_at for pod in self.pods.values())
            soon = min([soon, *(call.due for call in self.calls)])
            if soon == float("inf"):
                return False
            self.pass_time(max(0.0, soon - self.now))
        return True

    def _ticket(self, pod: Pod) -> SignedTicket:
        ticket = Ticket(
            request_id="",
            prefill_host=pod.name,
            prefill_port=1,
            prefill_incarnation=pod.incarnation,
            nonce="",
            expires_at=0.0,
        )
        return SignedTicket(ticket, "unsigned")
