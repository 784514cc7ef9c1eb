"""A whole engine (loop, scheduler, handoff coordinators) on a token model; what moves it is the caller's."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from support.token_model import PAGE_SIZE, VOCAB_SIZE
from tandem_contract.handoff import LayoutFingerprint
from tandem_runtime.core.plan import StepPlan
from tandem_runtime.engine.control import ControlPlane
from tandem_runtime.engine.handoff_decode import DecodeHandoffs
from tandem_runtime.engine.handoff_parts import HandoffParts
from tandem_runtime.engine.handoff_prefill import PrefillHandoffs
from tandem_runtime.engine.leases import Timers
from tandem_runtime.engine.loop import Engine, Event, Publish
from tandem_runtime.engine.messages import Spans
from tandem_runtime.engine.transfers import LocalTransfers, TransferGroup
from tandem_runtime.scheduling import Scheduler, SchedulerConfig

Role = Literal["prefill", "decode"]


def token_fingerprint(model: str = "token-model") -> LayoutFingerprint:
    return LayoutFingerprint(
        model=model,
        kv_dtype="float32",
        num_layers=1,
        num_kv_heads=1,
        head_dim=1,
        page_size=PAGE_SIZE,
        rope="",
        tensor_parallel=1,
    )


def scheduler_config(fingerprint: LayoutFingerprint, *, max_num_batched_tokens: int, **options: int) -> SchedulerConfig:
    return SchedulerConfig(
        page_size=PAGE_SIZE,
        max_num_batched_tokens=max_num_batched_tokens,
        max_prefill_tokens_with_decodes=max_num_batched_tokens,
        enable_prefix_caching=True,
        cache_root=bytes.fromhex(fingerprint.digest()),
        **options,
    )


@dataclass
class TokenEngine:
    scheduler: Scheduler
    engine: Engine
    decode: DecodeHandoffs | None
    prefill: PrefillHandoffs | None

    @property
    def coordinator(self) -> DecodeHandoffs | PrefillHandoffs:
        side = self.decode or self.prefill
        assert side is not None
        return side


def token_engine(
    role: Role,
    *,
    name: str,
    url: str,
    incarnation: str,
    fingerprint: LayoutFingerprint,
    config: SchedulerConfig,
    transfers: LocalTransfers,
    timers: Timers,
    submit: Callable[[StepPlan], None],
    inbox: queue.SimpleQueue[Event],
    publish: Publish,
    lease_s: float,
    probe_interval_s: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
) -> TokenEngine:
    scheduler = Scheduler(config)
    control = ControlPlane(publish=publish)
    group = TransferGroup(
        [transfers],
        on_received=lambda report: decode.on_received(report) if decode else None,
        on_sent=lambda report: prefill.on_sent(report) if prefill else None,
    )
    parts = HandoffParts(
        scheduler=scheduler,
        transfers=group,
        control=control,
        timers=timers,
        fingerprint=fingerprint,
        incarnation=incarnation,
        on_spans=lambda spans: publish(Spans(spans)),
        clock=clock,
    )
    decode = prefill = None
    if role == "decode":
        decode = DecodeHandoffs(parts, url=url, probe_interval_s=probe_interval_s)
    else:
        horizon = 2 * config.max_num_batched_tokens
        prefill = PrefillHandoffs(parts, name=name, vocab_size=VOCAB_SIZE, lease_s=lease_s, token_horizon=horizon)
    engine = Engine(
        name=name,
        scheduler=scheduler,
        submit=submit,
        inbox=inbox,
        publish=publish,
        transfers=group,
        control=control,
        decode_handoffs=decode,
        prefill_handoffs=prefill,
        clock=clock,
    )
    return TokenEngine(scheduler, engine, decode, prefill)
