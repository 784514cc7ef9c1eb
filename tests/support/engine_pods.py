"""Whole engines on threads: real scheduler, loop, handoff coordinators and TCP transport; the model is a token model.

`Wire` stands for the HTTP between the pods' control ports, and can lose what is sent to a pod.
"""

from __future__ import annotations

import itertools
import queue
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from support.token_engine import Role, token_engine_config
from support.token_model import VOCAB_SIZE, TokenModelRunner
from tandem_contract.ticket import Ticket, new_nonce
from tandem_runtime.core.sampling import SamplingParams
from tandem_runtime.engine.assembly import assemble
from tandem_runtime.engine.executor import Executor
from tandem_runtime.engine.leases import TimerThread
from tandem_runtime.engine.messages import (
    ControlCall,
    ControlReply,
    EngineOutput,
    EngineRequest,
    EngineStatus,
    Outputs,
    Shutdown,
    SignedTicket,
    Spans,
)
from tandem_runtime.engine.rank import LocalTransfers
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.tcp import TcpReceiver, TcpSender
from tandem_tracing.spans import FinishedSpan

PATIENCE_S = 20.0


class Wire:
    def __init__(self) -> None:
        self._pods: dict[str, Pod] = {}
        self._calls: dict[int, tuple[Pod | Stranger, int, str]] = {}
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self.lost: set[str] = set()
        """URLs of pods that calls do not reach (a refused connection: status 0 at once)."""
        self.frozen: set[str] = set()
        """URLs of pods that take calls and never answer (status 0 after the call's timeout)."""
        self.slow: dict[str, float] = {}
        """Seconds that calls to a path take longer than others."""
        self.lost_replies: Counter[str] = Counter()
        """How many of the next replies to calls of a path are lost (status 0 at once)."""

    def add(self, pod: Pod) -> None:
        self._pods[pod.url] = pod

    def post(self, pod: Pod, path: str, body: bytes) -> tuple[int, bytes]:
        """What a stranger's message to the pod's control port is answered with."""
        stranger = Stranger()
        with self._lock:
            call_id = next(self._ids)
            self._calls[call_id] = (stranger, 0, path)
        pod.inbox.put(ControlCall(call_id=call_id, path=path, body=body))
        reply = stranger.inbox.get(timeout=PATIENCE_S)
        return reply.status, reply.body

    def send(self, origin: Pod, message: ControlCall | ControlReply) -> None:
        with self._lock:
            if isinstance(message, ControlReply):
                asker, call_id, path = self._calls.pop(message.call_id)
                reply = ControlReply(call_id=call_id, status=message.status, body=message.body)
                if self.lost_replies[path] > 0:
                    self.lost_replies[path] -= 1
                    reply = ControlReply(call_id=call_id, status=0, body=b"connection reset")
                asker.inbox.put(reply)
            elif message.url in self.frozen:
                late = ControlReply(call_id=message.call_id, status=0, body=b"timed out")
                origin.timers.after(message.timeout_s, lambda: origin.inbox.put(late))
            elif message.url in self.lost or message.url not in self._pods:
                origin.inbox.put(ControlReply(call_id=message.call_id, status=0, body=b"connection refused"))
            else:
                call_id = next(self._ids)
                self._calls[call_id] = (origin, message.call_id, message.path)
                target = self._pods[message.url]
                call = ControlCall(call_id=call_id, path=message.path, body=message.body)
                origin.timers.after(self.slow.get(message.path, 0.0), lambda: target.inbox.put(call))


class Stranger:
    """A caller that is no pod."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[ControlReply] = queue.SimpleQueue()


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    last: EngineOutput | None = None
    first_seen: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def wait(self) -> list[int]:
        assert self.done.wait(PATIENCE_S), "no answer in time"
        assert self.last is not None
        assert self.last.finish_reason in ("length", "stop"), self.last
        return self.token_ids


class Pod:
    """One engine with its threads. `role`: prefill or decode."""

    def __init__(
        self,
        wire: Wire,
        role: Role,
        name: str,
        *,
        num_pages: int = 256,
        max_num_seqs: int = 16,
        max_num_batched_tokens: int = 32,
        model: str = "token-model",
        lease_s: float = 30.0,
        probe_interval_s: float = 1.0,
    ) -> None:
        self.url = f"http://127.0.0.1:{name}"
        self.name = name
        self.incarnation = f"{name}-{time.monotonic_ns()}"
        self.inbox: queue.SimpleQueue = queue.SimpleQueue()
        self.status = EngineStatus()
        self.spans: list[FinishedSpan] = []
        self._answers: dict[str, Answer] = defaultdict(Answer)
        self.runner = TokenModelRunner(num_pages, max_num_seqs)
        memory = PageMemory(memoryview(self.runner.memory), self.runner.layout, 0)
        self.transfers = LocalTransfers(
            TcpReceiver(memory, self.inbox.put, host="127.0.0.1"), TcpSender(memory, self.inbox.put)
        )
        self.timers = TimerThread(self.inbox.put)
        self._executor = Executor(self.inbox.put)
        self._executor.lead(self.runner)
        config = token_engine_config(
            role,
            name,
            url=self.url,
            incarnation=self.incarnation,
            num_pages=num_pages,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=4096,
            max_waiting=1024,
            model=model,
            lease_s=lease_s,
            probe_interval_s=probe_interval_s,
        )
        made = assemble(
            config,
            ranks=[self.transfers],
            timers=self.timers,
            submit=self._executor.submit,
            inbox=self.inbox,
            publish=lambda message: self._take(wire, message),
        )
        self.scheduler, self.engine, self.decode, self.prefill = made.scheduler, made.engine, made.decode, made.prefill
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()
        wire.add(self)

    def ticket(self, request_id: str) -> SignedTicket:
        """A ticket for this (prefill) pod; signatures are the API process's business."""
        host, port = self.url.removeprefix("http://").split(":")
        ticket = Ticket(
            request_id=request_id,
            prefill_host=host,
            prefill_port=int(port),
            prefill_incarnation=self.incarnation,
            nonce=new_nonce(),
            expires_at=time.time() + 60,
        )
        return SignedTicket(ticket, "unsigned")

    def ask(
        self, request_id: str, prompt: list[int], num_tokens: int, tickets: list[SignedTicket] | None = None, **more
    ) -> Answer:
        answer = self._answers[request_id]
        sampling = SamplingParams(max_tokens=num_tokens, temperature=0.0)
        self.inbox.put(
            EngineRequest(
                request_id=request_id, prompt_token_ids=prompt, sampling=sampling, tickets=tickets or [], **more
            )
        )
        return answer

    def call(self, work) -> None:
        """Runs `work` on the engine's thread and waits for it."""
        done = threading.Event()
        result: list = []

        def event() -> None:
            result.append(work())
            done.set()

        self.inbox.put(event)
        assert done.wait(PATIENCE_S), f"the engine of {self.name} hangs"
        return result[0]

    def wait_idle(self) -> None:
        """Until nothing runs, waits, is reserved or quarantined: every page is free (or merely cached)."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            counters = self.call(lambda: self.scheduler.counters)
            if not (counters.running or counters.waiting or counters.pages_used or counters.pages_quarantined):
                self.call(self.scheduler.check_integrity)
                return
            threading.Event().wait(0.01)
        raise AssertionError(f"{self.name} still holds pages: {counters}")

    def close(self) -> None:
        self.inbox.put(Shutdown())
        self._thread.join(PATIENCE_S)
        self._executor.close()
        self.timers.close()
        self.transfers.close()
        assert self.failure is None, self.failure

    def _run(self) -> None:
        try:
            self.engine.run()
        except BaseException as error:
            self.failure = error
            raise

    def _take(self, wire: Wire, message) -> None:
        match message:
            case Outputs(outputs):
                for output in outputs:
                    answer = self._answers[output.request_id]
                    answer.token_ids += output.token_ids
                    answer.first_seen.set()
                    if output.finish_reason is not None:
                        answer.last = output
                        answer.done.set()
            case EngineStatus():
                self.status = message
            case Spans(spans):
                self.spans += spans
            case _:
                wire.send(self, message)


@contextmanager
def pods(*specs: tuple[Role, str, dict]) -> Iterator[list[Pod]]:
    """(role, name, options) of each."""
    wire = Wire()
    made = [Pod(wire, role, name, **options) for role, name, options in specs]
    for pod in made:
        pod.wire = wire
    try:
        yield made
    finally:
        for pod in made:
            pod.close()


def prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(VOCAB_SIZE) for _ in range(length)]


def eventually(value):
    """The first true result."""
    deadline = time.monotonic() + 10
    while not (found := value()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)
    return found
