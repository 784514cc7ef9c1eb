"""Which sequence runs when, in which KV pages: page pool, prefix cache, admission, chunking, preemption.

Pure decisions over integers. No torch, no I/O, no clocks (time is an argument), no knowledge of how a step is computed
or how pages travel.
"""

from tandem_runtime.scheduling.config import SchedulerConfig, SchedulerCounters, SpeculationConfig
from tandem_runtime.scheduling.scheduler import Scheduler
from tandem_runtime.scheduling.sequence import Mode, Sequence, SequenceUpdate

__all__ = [
    "Mode",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerCounters",
    "Sequence",
    "SequenceUpdate",
    "SpeculationConfig",
]
