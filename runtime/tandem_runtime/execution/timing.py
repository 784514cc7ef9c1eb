"""How long a step kept its device busy, and how long the device had idled before it."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

import torch


class StepTime(NamedTuple):
    seconds: float
    gap_seconds: float


class Finish(Protocol):
    """A step that was handed to its device."""

    @property
    def done(self) -> bool:
        """Whether `wait` returns at once, whatever the device does."""

    def wait(self) -> StepTime:
        """Returns when the device has computed the step; may be called on any thread."""


class Timer(Protocol):
    def start(self) -> None:
        """The device's work begins after this."""

    def stop(self) -> Finish:
        """The device's work was submitted before this."""


class HostFinish(NamedTuple):
    time: StepTime
    done: bool = True

    def wait(self) -> StepTime:
        return self.time


class HostTimer:
    """For a device that computes within the call, as the CPU does."""

    def __init__(self) -> None:
        self._began = 0.0
        self._idle_since = 0.0

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self) -> HostFinish:
        gap = self._began - self._idle_since if self._idle_since else 0.0
        self._idle_since = time.perf_counter()
        return HostFinish(StepTime(self._idle_since - self._began, gap))


class CudaFinish(NamedTuple):
    previous: torch.cuda.Event | None
    began: torch.cuda.Event
    ended: torch.cuda.Event
    done: bool = False

    def wait(self) -> StepTime:
        self.ended.synchronize()
        gap = self.previous.elapsed_time(self.began) if self.previous else 0.0
        return StepTime(self.began.elapsed_time(self.ended) * 1e-3, gap * 1e-3)


class CudaTimer:
    """Events in the current stream, so that nobody waits: a step that was submitted in time leaves a gap of ~0."""

    def __init__(self) -> None:
        self._began: torch.cuda.Event | None = None
        self._ended: torch.cuda.Event | None = None

    def start(self) -> None:
        self._began = self._event()

    def stop(self) -> CudaFinish:
        assert self._began is not None, "start() first"
        previous, self._ended = self._ended, self._event()
        return CudaFinish(previous, self._began, self._ended)

    @staticmethod
    def _event() -> torch.cuda.Event:
        # Blocking: a spinning waiter would take a core, and the next step is already queued behind this one.
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
