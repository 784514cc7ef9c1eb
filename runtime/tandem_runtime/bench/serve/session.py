"""Measures: prepares prompts, drives load on each server in turn, climbs to the SLO's edge."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any, Protocol

import orjson

from tandem_runtime.bench.errors import ServerUnusable
from tandem_runtime.bench.serve.client import Client, Request
from tandem_runtime.bench.serve.load import Clock, Load, drive
from tandem_runtime.bench.serve.metrics import RequestRecord, summarize
from tandem_runtime.bench.serve.options import Options
from tandem_runtime.bench.serve.planner import SweepPlanner
from tandem_runtime.bench.serve.results import Edge, Findings, LevelResult
from tandem_runtime.bench.serve.slo import Slo
from tandem_runtime.bench.serve.workload import Prompt, PromptSource, Workload

_PROMPTS_PER_SLOT = 4
_OPEN_LOOP_PROMPTS = 100


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    client: Client
    model: str


class Watcher(Protocol):
    """Sees the measurement go on."""

    def level_started(self, title: str, requests: int) -> None: ...
    def request_done(self, record: RequestRecord) -> None: ...
    def level_done(self, result: LevelResult) -> None: ...


class Session:
    def __init__(
        self, options: Options, targets: list[Target], prompts: PromptSource, watcher: Watcher, findings: Findings
    ) -> None:
        self._options = options
        self._targets = targets
        self._prompts = prompts
        self._watcher = watcher
        self._findings = findings

    async def run(self) -> None:
        for workload in self._options.workloads:
            for target in self._targets:
                await self._warm_up(target, workload)
            if self._options.sweep:
                for target in self._targets:
                    await self._climb(target, workload)
            else:
                await self._measure_all(workload)

    async def _measure_all(self, workload: Workload) -> None:
        caps = self._options.concurrency or (None,)
        rates = self._options.request_rate or (None,)
        loads = [Load(cap, rate) for rate in rates for cap in caps]
        turn = 0
        for load in loads:
            for repeat in range(self._options.repeat):
                # Peers take turns at going first, so that a drift of the machine favours neither.
                for target in self._targets if turn % 2 == 0 else reversed(self._targets):
                    await self._measure(target, workload, load, repeat)
                turn += 1

    async def _climb(self, target: Target, workload: Workload) -> None:
        measured: dict[int, LevelResult] = {}

        async def measure(concurrency: int) -> LevelResult:
            if concurrency not in measured:
                load = Load(concurrency, None)
                measured[concurrency] = await self._measure(target, workload, load, 0)
            return measured[concurrency]

        options = self._options
        # Loosest bound first: its levels serve the tighter ones too.
        for bound in sorted(options.slo_table, key=lambda b: -b.seconds) or (None,):
            slo = options.slo if bound is None else options.slo.with_bound(bound)
            planner = SweepPlanner(start=options.min_concurrency, maximum=options.max_concurrency)
            await find_edge(planner, measure, slo)
            inside = [result for result in measured.values() if slo.met_by(result.summary)]
            best = max(inside, key=lambda result: result.summary.output_tokens_per_s, default=None)
            edge = Edge(target=target.name, workload=workload, slo=slo, best=best, unbounded=planner.at_maximum)
            self._findings.edges.append(edge)

    async def _measure(self, target: Target, workload: Workload, load: Load, repeat: int) -> LevelResult:
        rng = random.Random(f"{self._findings.seed}/{workload}/{load}/{repeat}")
        requests = await self._requests(target, workload, self._level_size(load), rng)
        self._watcher.level_started(f"{target.name} {workload} at {load}", len(requests))
        cpu, wall = process_time(), perf_counter()
        records = await drive(requests, load, self._sender(target), rng)
        busy = (process_time() - cpu) / (perf_counter() - wall)
        result = LevelResult(
            target=target.name,
            workload=workload,
            load=load,
            repeat=repeat,
            gpus=self._options.gpus,
            summary=summarize(records),
            records=tuple(records),
            slo=self._options.slo,
            client_busy=busy,
        )
        self._findings.levels.append(result)
        self._watcher.level_done(result)
        return result

    async def _warm_up(self, target: Target, workload: Workload) -> None:
        if self._options.warmup:
            rng = random.Random(f"{self._findings.seed}/{workload}/warm-up")
            requests = await self._requests(target, workload, self._options.warmup, rng)
            self._watcher.level_started(f"{target.name} {workload} warm-up", len(requests))
            records = await drive(requests, Load(len(requests), None), self._sender(target), rng)
            errors = [record.error for record in records if record.error is not None]
            if errors and not self._options.allow_failures:
                raise ServerUnusable(f"{target.name}: the warm-up failed: {errors[0]}")

    def _sender(self, target: Target) -> Callable[[Request, float, Clock], Awaitable[RequestRecord]]:
        async def send(request: Request, due: float, clock: Clock) -> RequestRecord:
            record = await target.client.send(request, start=due, clock=clock)
            self._watcher.request_done(record)
            return record

        return send

    async def _requests(self, target: Target, workload: Workload, count: int, rng: random.Random) -> list[Request]:
        """The same for every target, but for the model's name."""
        requests = []
        for index in range(count):
            prompt = await self._prompts.prompt(rng, workload.input_len)
            body = orjson.dumps(request_body(self._options, target.model, prompt, workload.output_len))
            requests.append(Request(index, body, workload.output_len if self._options.ignore_eos else None))
        return requests

    def _level_size(self, load: Load) -> int:
        if self._options.num_prompts is not None:
            return self._options.num_prompts
        if load.request_rate is not None:
            return _OPEN_LOOP_PROMPTS
        assert load.concurrency is not None
        return _PROMPTS_PER_SLOT * load.concurrency


async def find_edge(planner: SweepPlanner, measure: Callable[[int], Awaitable[LevelResult]], slo: Slo) -> None:
    while (concurrency := planner.next_level()) is not None:
        planner.observe(concurrency, met=slo.met_by((await measure(concurrency)).summary))


def request_body(options: Options, model: str, prompt: Prompt, output_len: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": output_len,
        "temperature": options.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if options.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": prompt}]
    else:
        body["prompt"] = prompt
    if options.ignore_eos:
        body["ignore_eos"] = True
    return body | options.extra_body
