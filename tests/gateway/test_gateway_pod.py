"""What the gateway believes of a pod between two polls."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from aiohttp.client_reqrep import ConnectionKey
from gateway.fake_engine import status
from tandem_gateway.deadline import Deadline, Expired
from tandem_gateway.endpoints import Endpoint
from tandem_gateway.errors import BadUpstream, UpstreamTimeout
from tandem_gateway.pod import Pod, is_gone
from tandem_gateway.prefix import BLOCK_BYTES, block_hashes
from tandem_gateway.prompt import Prompt
from tandem_gateway.retry import CAP, RetryBudget

PROMPT = Prompt("m", block_hashes(b"", b"x" * 4 * BLOCK_BYTES), tokens=256)


@pytest_asyncio.fixture
async def pod() -> AsyncIterator[Pod]:
    async with aiohttp.ClientSession() as session:
        yield Pod(Endpoint("http://10.0.0.1:8000", "decode"), session)


async def test_requests_since_the_poll_count_as_load(pod: Pod) -> None:
    pod.polled(status(running=5, waiting=2), pod.poll_began())
    assert pod.view(PROMPT).load == 7
    pod.in_flight += 3
    assert pod.view(PROMPT).load == 10
    mark = pod.poll_began()
    pod.in_flight += 1
    pod.polled(status(running=9), mark)
    assert pod.view(PROMPT).load == 10, "what came while the poll was under way is not in the pod's answer"
    pod.in_flight -= 4
    pod.polled(status(running=0), pod.poll_began())
    pod.in_flight += 2
    pod.polled(status(running=0), pod.poll_began())
    assert pod.view(PROMPT).load == 2, "what we know to be there counts, whatever the pod says"


async def test_a_prefill_pods_load_is_its_backlog_in_tokens(pod: Pod) -> None:
    pod.polled(status(role="prefill", waiting_tokens=1000), pod.poll_began())
    pod.sent(PROMPT)
    assert pod.view(PROMPT).load == 1256
    pod.polled(status(role="prefill", waiting_tokens=1200), pod.poll_began())
    assert pod.view(PROMPT).load == 1200


async def test_a_restart_forgets_what_was_sent(pod: Pod) -> None:
    pod.polled(status(), pod.poll_began())
    pod.sent(PROMPT)
    assert pod.view(PROMPT).known_blocks == 4
    pod.polled(status(incarnation="2"), pod.poll_began())
    assert pod.view(PROMPT).known_blocks == 0


async def test_the_guess_is_no_larger_than_the_pods_cache(pod: Pod) -> None:
    """64 tokens are one block; a pod of 8 pages of 16 tokens holds two."""
    pod.polled(status(kv_pages_total=8, page_size=16), pod.poll_began())
    pod.sent(PROMPT)
    assert pod.view(PROMPT).known_blocks == 2


async def test_one_late_poll_is_forgiven_two_are_not_and_a_good_one_heals(pod: Pod) -> None:
    states = [pod.state]
    for late in (False, True, True, False):
        if late:
            pod.poll_failed("late")
        else:
            pod.polled(status(), pod.poll_began())
        states.append(pod.state)
    assert states == ["down", "ready", "ready", "down", "ready"]


@pytest.mark.parametrize(("polls", "silent", "lost"), [(3, True, False), (4, True, True), (50, False, False)])
async def test_unanswered_requests_outlast_a_short_silence(pod: Pod, polls: int, silent: bool, lost: bool) -> None:
    """Two late polls of a busy pod used to turn answers that were on their way into 502s."""
    pod.polled(status(), pod.poll_began())
    waiting = Deadline(end=asyncio.get_running_loop().time() + 60.0, stall=60.0)
    pod.await_answer(waiting)
    arrives = asyncio.Event()

    async def attempt() -> bool:
        try:
            async with waiting:
                await arrives.wait()
        except Expired:
            return True
        return False

    asking = asyncio.create_task(attempt())
    await asyncio.sleep(0)
    for _ in range(polls):
        pod.poll_failed("late", silent=silent)
    assert pod.state == "down"
    if not lost:
        arrives.set()
    assert await asking == lost


async def test_a_restart_ends_attempts_that_wait_for_an_answer(pod: Pod) -> None:
    pod.polled(status(), pod.poll_began())
    waiting = Deadline(end=asyncio.get_running_loop().time() + 60.0, stall=60.0)

    async def attempt() -> None:
        pod.await_answer(waiting)
        async with waiting:
            await asyncio.Event().wait()

    asking = asyncio.create_task(attempt())
    await asyncio.sleep(0)
    pod.polled(status(incarnation="2"), pod.poll_began())
    with pytest.raises(Expired) as cut:
        await asyncio.wait_for(asking, 20)
    assert isinstance(cut.value.error, BadUpstream)


async def test_a_stream_that_has_ended_is_not_asked_whether_it_may_move(pod: Pod) -> None:
    asked: list[int] = []
    with pod.movable(Deadline(end=asyncio.get_running_loop().time() + 60.0, stall=60.0), lambda: bool(asked.append(1))):
        pod.move_streams()
    pod.move_streams()
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("own", "leaving", "able"),
    [
        ({}, {}, True),
        ({"role": "both"}, {}, True),
        ({"role": "prefill"}, {}, False),
        ({"ready": False}, {}, False),
        ({"draining": True}, {}, False),
        ({"continuation": "other"}, {}, False),
        ({"continuation": ""}, {"continuation": ""}, False),
    ],
)
async def test_which_pod_can_take_streams_over(pod: Pod, own: dict, leaving: dict, able: bool) -> None:
    pod.polled(status(**own), pod.poll_began())
    assert pod.can_take_over(status(**leaving)) is able


async def test_draining_and_leaving_pods_take_nothing_new(pod: Pod) -> None:
    pod.polled(status(draining=True), pod.poll_began())
    assert (pod.state, pod.view(PROMPT).usable) == ("draining", False)
    pod.polled(status(), pod.poll_began())
    pod.endpoint = Endpoint("http://10.0.0.1:8000", "decode", leaving=True)
    assert (pod.state, pod.view(PROMPT).usable) == ("draining", False)


async def test_a_pod_that_goes_down_ends_only_unanswered_attempts(pod: Pod) -> None:
    pod.polled(status(), pod.poll_began())
    end = asyncio.get_running_loop().time() + 0.3
    answered, unanswered = Deadline(end=end, stall=60.0), Deadline(end=end, stall=60.0)

    async def attempt(deadline: Deadline) -> None:
        pod.await_answer(deadline)
        async with deadline:
            if deadline is answered:
                pod.answered(deadline)
            await asyncio.Event().wait()

    first, second = asyncio.create_task(attempt(answered)), asyncio.create_task(attempt(unanswered))
    await asyncio.sleep(0)
    pod.went_down("frozen")
    with pytest.raises(Expired) as cut:
        await second
    assert isinstance(cut.value.error, BadUpstream)
    with pytest.raises(Expired) as timed_out:
        await first
    assert isinstance(timed_out.value.error, UpstreamTimeout)


@pytest.mark.parametrize(
    ("kind", "number", "gone"),
    [
        (aiohttp.ClientConnectorError, errno.ECONNREFUSED, True),
        (aiohttp.ClientConnectorError, errno.EHOSTUNREACH, True),
        (aiohttp.ClientConnectorError, errno.EMFILE, False),
        (aiohttp.ClientConnectorError, errno.EADDRNOTAVAIL, False),
        (aiohttp.ClientConnectorDNSError, socket.EAI_AGAIN, False),
    ],
)
def test_a_gateway_without_sockets_or_names_does_not_take_its_pods_for_gone(
    kind: type[aiohttp.ClientConnectorError], number: int, gone: bool
) -> None:
    """One connection too many would have moved, or ended, the streams of every pod."""
    key = ConnectionKey("10.0.0.1", 8000, False, True, None, None, None)
    assert is_gone(kind(key, OSError(number, "why"))) == gone


def test_retries_are_a_share_of_requests_and_never_quite_none() -> None:
    budget = RetryBudget(now=0.0)
    while budget.withdraw(0.0):
        pass
    for _ in range(100):
        budget.deposit()
    assert sum(budget.withdraw(0.0) for _ in range(100)) in (19, 20), "floating point may cost one"
    assert not budget.withdraw(0.0)
    assert budget.withdraw(1.0), "a quiet gateway may retry now and then"
    assert sum(budget.withdraw(10_000.0) for _ in range(1000)) == CAP
