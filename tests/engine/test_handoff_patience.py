"""How long pods wait for one another in a handoff, how often they ask, and when they give up."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest
from engine.handoff_pod import Call
from engine.handoff_world import World
from tandem_contract import handoff
from tandem_runtime.engine.messages import ControlCall, ControlReply

PROMPT = list(range(6)) * 4


def calls(world: World, path: str) -> list[Call]:
    return [call for call in world.calls if call.message.path == path]


def next_call(world: World, path: str) -> Call:
    """The next message to `path`; what else happens until then goes well."""
    while not (found := [call for call in calls(world, path) if not call.delivered]):
        assert world.advance()
    return found[0]


def reply(world: World, call: Call, status: int, message: object = None) -> None:
    world.calls.remove(call)
    body = b"" if message is None else msgspec.json.encode(message)
    call.origin.hear(ControlReply(call_id=call.message.call_id, status=status, body=body))


def prefill_calls(world: World, seconds: float) -> int:
    """Whether another request, after so long, is posted to the prefill pod."""
    world.pass_time(seconds)
    world.ask(PROMPT, 1, decode="d0", prefill=["p0"])
    return len(calls(world, handoff.PREFILL_PATH))


def test_a_pod_at_fault_is_not_asked_for_five_seconds() -> None:
    world = World(32)
    world.ask(PROMPT, 1, decode="d0", prefill=["p0"])
    world.lose(next_call(world, handoff.PREFILL_PATH))
    assert [prefill_calls(world, seconds) for seconds in (0.0, 4.9, 0.2)] == [0, 0, 1]
    assert world.pods["d0"].coordinator.fallbacks == {"unreachable": 1, "avoided": 2}
    world.settle()


def test_a_full_decode_pod_is_asked_again_at_growing_intervals_of_at_most_half_a_second() -> None:
    world = World(32)
    world.ask(PROMPT, 1, decode="d0", prefill=["p0"])
    asked = []
    for _ in range(8):
        call = next_call(world, handoff.RESERVE_PATH)
        asked.append(world.now)
        reply(world, call, 503)
    assert [round(later - earlier, 2) for earlier, later in pairwise(asked)] == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]
    world.settle()


def test_a_decode_pod_that_cannot_be_reached_is_asked_three_times() -> None:
    world = World(32)
    world.ask(PROMPT, 1, decode="d0", prefill=["p0"])
    prefill = world.pods["p0"].coordinator
    for _ in range(3):
        call = next_call(world, handoff.RESERVE_PATH)
        assert prefill.open_jobs == 1
        world.lose(call)
    assert prefill.outcomes == {"sent/withdrawn": 1}
    world.settle()


@pytest.mark.parametrize(("answered", "lost"), [([False], 0), ([False, False], 1), ([False, True, False], 0)])
def test_two_missed_probes_in_a_row_are_a_lost_pod(answered: list[bool], lost: int) -> None:
    world = World(32)
    world.ask(PROMPT, 1, decode="d0", prefill=["p0"])
    decode = world.pods["d0"]
    while not world.pods["p0"].sending:
        world.advance()
    for alive in answered:
        world.pass_time(1.0)
        [probe] = calls(world, handoff.ALIVE_PATH)
        if alive:
            incarnation = world.pods["p0"].incarnation
            reply(world, probe, 200, handoff.Alive(incarnation=incarnation, unknown_jobs=[]))
        else:
            world.lose(probe)
    [remote] = decode.coordinator._remotes.values()
    assert (remote.job.error is not None) == bool(lost)
    world.settle()


@pytest.mark.parametrize(("age", "withdrawn"), [(9.9, False), (10.1, True)])
def test_a_job_that_its_decode_pod_does_not_list_ends_when_it_is_ten_seconds_old(age: float, withdrawn: bool) -> None:
    """A younger one may have been posted after the probe was written."""
    world = World(32)
    world.ask(PROMPT, 1, decode="d0", prefill=["p0"])
    prefill, decode = world.pods["p0"], world.pods["d0"]
    reply(world, next_call(world, handoff.RESERVE_PATH), 503)
    [job_id] = prefill.coordinator._jobs

    def probe(*job_ids: str) -> None:
        body = handoff.AliveProbe(decode_url=decode.url, decode_incarnation=decode.incarnation, job_ids=list(job_ids))
        prefill.hear(ControlCall(call_id=0, path=handoff.ALIVE_PATH, body=msgspec.json.encode(body)))

    decode.frozen = True
    world.now += age - 5.0
    probe(job_id)
    world.now += 5.0
    probe()
    assert (job_id not in prefill.coordinator._jobs) == withdrawn
    world.settle()


def test_a_grant_for_other_pages_than_the_job_sends_ends_it() -> None:
    """Their number is right: only where they begin tells that they are not for these tokens."""
    world = World(32)
    world.ask(PROMPT, 1, decode="d0", prefill=["p0"])
    world.deliver(next_call(world, handoff.RESERVE_PATH))
    while not world.replies or world.replies[0][0].message.path != handoff.RESERVE_PATH:
        world.advance()
    call, granted = world.replies.pop(0)
    grant = msgspec.json.decode(granted.body, type=handoff.ReserveGrant)
    reply(world, call, 200, replace(grant, first_page=grant.first_page + 1))
    world.settle()
    assert world.pods["p0"].coordinator.outcomes["sent/bad_grant"] == 1
