"""Prefill and decode engines with everything between them in the test's hand: one thread, one clock, no sockets.

Whole engines (loop, scheduler, coordinators, transfer rules) on a token model. Nothing happens by itself: the test
decides when a step is computed, a message arrives, is lost or doubled, bytes move, a report is heard, time passes.
"""

from __future__ import annotations

import itertools
import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from support.engine_pods import token_fingerprint
from support.token_model import VOCAB_SIZE, TokenModelRunner, continue_text
from tandem_contract.ticket import Ticket
from tandem_runtime.core.plan import StepPlan
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine.control import ControlPlane
from tandem_runtime.engine.handoff_decode import DecodeHandoffs
from tandem_runtime.engine.handoff_parts import HandoffParts
from tandem_runtime.engine.handoff_prefill import PrefillHandoffs
from tandem_runtime.engine.loop import Engine
from tandem_runtime.engine.messages import (
    Abort,
    ControlCall,
    ControlReply,
    EngineOutput,
    EngineRequest,
    Outputs,
    SignedTicket,
)
from tandem_runtime.engine.transfers import LocalTransfers, TransferGroup
from tandem_runtime.scheduling import Scheduler, SchedulerConfig
from tandem_runtime.transfer.local import LocalReceiver, LocalSender
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.protocol import Failure, ReceiveReport, SendReport, TransferFault

PAGE_SIZE = 4
LEASE_S = 6.0


class Fabric:
    """A `LocalFabric` that moves nothing until it is told to; what was asked first is done first."""

    def __init__(self) -> None:
        self.receivers: dict[int, LocalReceiver] = {}
        self.ports = itertools.count(1)
        self.work: deque[Callable[[], None]] = deque()

    def call(self, work: Callable[[], None]) -> None:
        self.work.append(work)

    def move(self) -> None:
        self.work.popleft()()


class Timers:
    """Implements `leases.Timers` on the world's clock."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._ids = itertools.count(1)
        self._events: dict[int, tuple[float, Callable[[], None]]] = {}

    def after(self, seconds: float, event: Callable[[], None]) -> int:
        timer = next(self._ids)
        self._events[timer] = (self._world.now + seconds, event)
        return timer

    def cancel(self, timer: int | None) -> None:
        self._events.pop(timer or 0, None)

    @property
    def next_at(self) -> float:
        return min((at for at, _ in self._events.values()), default=float("inf"))

    def due(self) -> list[Callable[[], None]]:
        timers = sorted((at, timer) for timer, (at, _) in self._events.items() if at <= self._world.now)
        return [self._events.pop(timer)[1] for _, timer in timers]


@dataclass
class Asked:
    """A client's request, which may go on at another pod after its own restarts."""

    request: EngineRequest
    pod: Pod
    outputs: list[int] = field(default_factory=list)
    finish: str | None = None
    aborted: bool = False


@dataclass(eq=False)
class Call:
    origin: Pod
    message: ControlCall
    due: float
    delivered: bool = False


class Pod:
    def __init__(self, world: World, name: str, role: str, incarnation: int, num_pages: int) -> None:
        self.world, self.name, self.role, self.num_pages = world, name, role, num_pages
        self.url = f"http://{name}:1"
        self.number = incarnation
        self.incarnation = f"{name}-{incarnation}"
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.plans: deque[StepPlan] = deque()
        self.reports: deque[ReceiveReport | SendReport] = deque()
        """Of the transports, not yet heard by the engine."""
        self.sending: dict[str, list[int]] = {}
        """Pages that the sender may still read, by job."""
        self._sent: set[str] = set()
        self.frozen = False
        self.runner = TokenModelRunner(num_pages, 4)
        memory = PageMemory(memoryview(self.runner.memory), self.runner.layout, 0)
        self.receiver = LocalReceiver(world.fabric, memory, self.reports.append)
        self.sender = LocalSender(world.fabric, memory, self.reports.append)
        transfers = LocalTransfers(self.receiver, self.sender)
        transfers.send = self._send
        fingerprint = token_fingerprint()
        self.scheduler = Scheduler(
            SchedulerConfig(
                page_size=PAGE_SIZE,
                num_pages=num_pages,
                max_num_seqs=4,
                max_num_batched_tokens=8,
                max_prefill_tokens_with_decodes=8,
                max_model_len=64,
                max_waiting=12,
                enable_prefix_caching=True,
                cache_root=bytes.fromhex(fingerprint.digest()),
            )
        )
        self.timers = Timers(world)
        control = ControlPlane(publish=self._take)
        self.decode = self.prefill = None
        group = TransferGroup(
            [transfers],
            on_received=lambda report: self.decode.on_received(report),
            on_sent=lambda report: self.prefill.on_sent(report),
        )
        parts = HandoffParts(
            scheduler=self.scheduler,
            transfers=group,
            control=control,
            timers=self.timers,
            fingerprint=fingerprint,
            incarnation=self.incarnation,
            clock=lambda: world.now,
        )
        if role == "decode":
            self.decode = DecodeHandoffs(parts, url=self.url)
        else:
            self.prefill = PrefillHandoffs(parts, name=name, vocab_size=VOCAB_SIZE, lease_s=LEASE_S, token_horizon=16)
        self.engine = Engine(
            name=name,
            scheduler=self.scheduler,
            submit=self.plans.append,
            inbox=self.inbox,
            publish=self._take,
            transfers=group,
            control=control,
            decode_handoffs=self.decode,
            prefill_handoffs=self.prefill,
            clock=lambda: world.now,
        )

    @property
    def coordinator(self) -> DecodeHandoffs | PrefillHandoffs:
        return self.decode or self.prefill

    def hear(self, *events: object) -> None:
        for event in events:
            self.inbox.put(event)
        self.run()

    def run(self) -> None:
        """All that the engine can do now; a frozen one does nothing, and its events wait."""
        if not self.frozen:
            self.engine.turn(None if self.inbox.empty() else self.inbox.get())

    def step(self) -> None:
        self.hear(self.runner.launch(self.plans.popleft()).result())

    def hear_report(self) -> None:
        report = self.reports.popleft()
        if isinstance(report, SendReport):
            self.sending.pop(report.job_id, None)
            self._sent.add(report.job_id)
        self.hear(report)

    def lose_connection(self, job_id: str) -> None:
        self.sender._fail(job_id, TransferFault(Failure.DISCONNECTED, "the network broke"))

    def close(self) -> None:
        """As the kernel does for a process that is killed: its peers see its connections end."""
        for side in (self.receiver, self.sender):
            side._shut_down()

    def check(self) -> None:
        self.scheduler.check_integrity()
        pool = self.scheduler._memory.pool
        landing = [slot for job in self.receiver._jobs.values() for slot in job.incoming.job.slots]
        assert len({page for page, _ in landing}) == len(landing), "two jobs write to one page"
        quarantined = {page for pages in pool._quarantine.values() for page in pages}
        for page, generation in landing:
            held = pool.generation(page) == generation and pool.references(page) == 1
            assert held or page in quarantined, "a late write would hit another owner's page"
        for pages in self.sending.values():
            assert all(pool.references(page) for page in pages), "a page is free while it is being sent"

    def check_idle(self) -> None:
        counters = self.scheduler.counters
        held = (counters.running, counters.waiting, counters.pages_used, counters.pages_quarantined)
        assert held == (0, 0, 0, 0), f"{self.name}: {counters}"
        kept = [self.receiver._jobs, self.sender._jobs, self.sending, self.engine._live]
        if self.decode:
            kept += [self.decode._jobs, self.decode._peers]
        assert not any(kept)
        assert self.coordinator.open_jobs == 0

    def _send(self, job_id: str, first_index: int, page_ids: list[int]) -> None:
        if job_id not in self._sent:  # a sender ignores what comes after its report
            self.sending.setdefault(job_id, []).extend(page_ids)
        self.sender.send(job_id, first_index, page_ids)

    def _take(self, message: object) -> None:
        match message:
            case ControlCall():
                self.world.calls.append(Call(self, message, self.world.now + message.timeout_s))
            case ControlReply():
                self.world.answer(message)
            case Outputs(outputs):
                for output in outputs:
                    self.world.told(output)


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
        for name, role in (("p0", "prefill"), ("p1", "prefill"), ("d0", "decode"), ("d1", "decode")):
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
