"""Puts an engine together: scheduler, handoffs and loop, around whatever computes, moves pages and carries messages."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tandem_contract.handoff import LayoutFingerprint

from tandem_runtime.core.plan import StepPlan
from tandem_runtime.engine.control import ControlPlane
from tandem_runtime.engine.grammar_gate import GrammarGate
from tandem_runtime.engine.handoff_decode import DecodeHandoffs
from tandem_runtime.engine.handoff_parts import HandoffParts
from tandem_runtime.engine.handoff_prefill import PrefillHandoffs
from tandem_runtime.engine.leases import Timers
from tandem_runtime.engine.loop import Engine, Event, Publish
from tandem_runtime.engine.messages import Spans
from tandem_runtime.engine.prefill_peers import PROBE_INTERVAL_S
from tandem_runtime.engine.transfers import JobReport, RankTransfers, TransferGroup
from tandem_runtime.scheduling import Scheduler, SchedulerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What makes one pod's engine differ from another's."""

    name: str
    role: Literal["both", "prefill", "decode"]
    url: str
    """Where peers reach its handoff control port: http://HOST:PORT."""
    incarnation: str
    fingerprint: LayoutFingerprint
    scheduler: SchedulerConfig
    vocab_size: int
    handoff_lease_s: float
    probe_interval_s: float = PROBE_INTERVAL_S
    local_prefill_max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Assembled:
    engine: Engine
    scheduler: Scheduler
    decode: DecodeHandoffs | None
    prefill: PrefillHandoffs | None


def assemble(
    config: EngineConfig,
    *,
    ranks: Sequence[RankTransfers],
    timers: Timers,
    submit: Callable[[StepPlan], None],
    inbox: queue.SimpleQueue[Event],
    publish: Publish,
    grammars: GrammarGate | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Assembled:
    """`ranks`: unused where the role is both. What is passed in stays the caller's to close."""
    scheduler = Scheduler(config.scheduler)
    control = ControlPlane(publish=publish)
    transfers: TransferGroup | None = None
    decode: DecodeHandoffs | None = None
    prefill: PrefillHandoffs | None = None
    if config.role != "both":

        def on_received(report: JobReport) -> None:
            assert decode is not None, "only decode pods open receivers"
            decode.on_received(report)

        def on_sent(report: JobReport) -> None:
            assert prefill is not None, "only prefill pods open senders"
            prefill.on_sent(report)

        transfers = TransferGroup(ranks, on_received=on_received, on_sent=on_sent)
        parts = HandoffParts(
            scheduler=scheduler,
            transfers=transfers,
            control=control,
            timers=timers,
            fingerprint=config.fingerprint,
            incarnation=config.incarnation,
            on_spans=lambda spans: publish(Spans(spans)),
            clock=clock,
        )
        if config.role == "decode":
            decode = DecodeHandoffs(parts, url=config.url, probe_interval_s=config.probe_interval_s)
        else:
            prefill = PrefillHandoffs(
                parts,
                name=config.name,
                vocab_size=config.vocab_size,
                lease_s=config.handoff_lease_s,
                token_horizon=2 * config.scheduler.max_num_batched_tokens,
            )
    engine = Engine(
        name=config.name,
        scheduler=scheduler,
        submit=submit,
        inbox=inbox,
        publish=publish,
        grammars=grammars,
        transfers=transfers,
        control=control,
        decode_handoffs=decode,
        prefill_handoffs=prefill,
        local_prefill_max_tokens=config.local_prefill_max_tokens,
        clock=clock,
    )
    return Assembled(engine, scheduler, decode, prefill)
