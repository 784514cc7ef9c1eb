"""A whole engine that does nothing by itself: its steps, its transports and its clock are in the test's hand."""

from __future__ import annotations

import itertools
import queue
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from support.token_engine import Role, token_engine_config
from support.token_model import TokenModelRunner
from tandem_runtime.core.plan import StepPlan
from tandem_runtime.engine.assembly import assemble
from tandem_runtime.engine.messages import ControlCall, ControlReply, Outputs
from tandem_runtime.engine.transfers import LocalTransfers
from tandem_runtime.transfer.local import LocalReceiver, LocalSender
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.protocol import Failure, ReceiveReport, SendReport, TransferFault

if TYPE_CHECKING:
    from engine.handoff_world import World

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


@dataclass(eq=False)
class Call:
    origin: Pod
    message: ControlCall
    due: float
    delivered: bool = False


class Pod:
    def __init__(self, world: World, name: str, role: Role, incarnation: int, num_pages: int) -> None:
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
        self.timers = Timers(world)
        config = token_engine_config(
            role,
            name,
            url=self.url,
            incarnation=self.incarnation,
            num_pages=num_pages,
            max_num_seqs=4,
            max_num_batched_tokens=8,
            max_model_len=64,
            max_waiting=12,
            lease_s=LEASE_S,
        )
        made = assemble(
            config,
            ranks=[transfers],
            timers=self.timers,
            submit=self.plans.append,
            inbox=self.inbox,
            publish=self._take,
            clock=lambda: world.now,
        )
        self.scheduler, self.engine, self.decode = made.scheduler, made.engine, made.decode
        coordinator = made.decode or made.prefill
        assert coordinator is not None
        self.coordinator = coordinator

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
