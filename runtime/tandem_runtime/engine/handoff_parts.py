"""What both sides of a handoff are made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tandem_contract.handoff import LayoutFingerprint
from tandem_tracing.spans import FinishedSpan

from tandem_runtime.engine.control import ControlPlane
from tandem_runtime.engine.leases import Timers
from tandem_runtime.engine.transfers import TransferGroup
from tandem_runtime.scheduling import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffParts:
    """One pod's. All of it is used on the engine's thread only."""

    scheduler: Scheduler
    transfers: TransferGroup
    control: ControlPlane
    timers: Timers
    fingerprint: LayoutFingerprint
    incarnation: str
    on_spans: Callable[[list[FinishedSpan]], None]
    """Takes the spans of traced requests."""
    clock: Callable[[], float] = time.monotonic
