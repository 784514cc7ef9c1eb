"""Which of the operator's tasks ended it, while kopf cancels others."""

from __future__ import annotations

import asyncio

import pytest
from tandem_operator.main import ended_first
from tandem_operator.watching import WatchEnded


async def cancelled_by_kopf() -> None:
    raise asyncio.CancelledError


async def test_cancelled_beside_one_that_ends_is_no_error() -> None:
    """SIGTERM: kopf ends, and cancels what was begun after it, at the same moment."""

    async def ends() -> None:
        pass

    assert await ended_first(cancelled_by_kopf(), ends()) == 1


async def test_cancelled_before_the_watch_ends_is_not_what_ended_it() -> None:
    """The CRD is removed while a reconcile hangs, which kopf cancels after 5 s: were the worker taken for the one that
    ended, it would hang on the turns of the loop whether the exit status is 1."""
    hung = asyncio.Event()

    async def reconcile() -> None:
        hung.set()
        await asyncio.Event().wait()

    async def watch(worker: list[asyncio.Task[None]]) -> None:
        await hung.wait()
        worker[0].cancel()
        await asyncio.wait(worker)
        await asyncio.sleep(0)
        raise WatchEnded("the CRD is gone")

    started: list[asyncio.Task[None]] = []

    async def worker() -> None:
        started.append(asyncio.create_task(reconcile()))
        await started[0]

    with pytest.raises(WatchEnded):
        await ended_first(worker(), watch(started))
