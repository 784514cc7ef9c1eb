"""Routing on a simulated fleet: shared-prefix chats against pods with finite prefix caches and slots."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import pytest
from tandem_gateway.prefix import SentBlocks
from tandem_gateway.routing import FREE_SEQUENCES, LOAD_FACTOR, Ask, PodView, choose

Strategy = Literal["PrefixAware", "LeastLoaded", "RoundRobin"]
PODS = 6
SLOTS = 16
CACHE_BLOCKS = 600
POLL_S = 0.5


@dataclass
class SimulatedPod:
    key: str
    sent: SentBlocks = field(default_factory=lambda: SentBlocks(CACHE_BLOCKS))
    """The gateway's guess."""
    cache: SentBlocks = field(default_factory=lambda: SentBlocks(CACHE_BLOCKS))
    """The pod's own."""
    requests: int = 0
    polled: int = 0
    since_poll: int = 0
    """Arrivals less departures: what the gateway counts itself."""

    def view(self, blocks: list[int]) -> PodView:
        load = float(self.polled + self.since_poll)
        waiting = max(0, self.polled - SLOTS)
        return PodView(self.key, "decode", ("m",), "f", True, load, waiting, self.sent.known(blocks))


@dataclass
class Outcome:
    hit_rate: float
    worst_excess: float
    """Largest picked queue over the bound that 1.2 times the least-loaded pod's queue gives; <= 0 is within."""


def chats(seed: int, count: int, gap_s: float) -> Iterator[tuple[float, list[int]]]:
    """Arrival times and prompts: a few popular system prompts, conversations that grow turn by turn."""
    rng = random.Random(seed)
    systems = [[rng.getrandbits(64) for _ in range(rng.randint(10, 30))] for _ in range(12)]
    conversations: list[list[int]] = []
    now = 0.0
    for _ in range(count):
        now += rng.expovariate(1 / gap_s)
        if conversations and rng.random() < 0.6:
            prompt = conversations[rng.randrange(len(conversations))]
        else:
            prompt = list(systems[min(int(rng.expovariate(0.4)), len(systems) - 1)])
            conversations.append(prompt)
            conversations = conversations[-60:]
        prompt.extend(rng.getrandbits(64) for _ in range(rng.randint(1, 4)))
        yield now, list(prompt)


def simulate(strategy: Strategy, seed: int, *, count: int = 3000, gap_s: float = 0.05) -> Outcome:
    pods = {str(index): SimulatedPod(str(index)) for index in range(PODS)}
    ends: list[tuple[float, str]] = []
    hits = blocks_seen = 0
    worst = float("-inf")
    next_poll = 0.0
    rng = random.Random(seed + 1)
    for turn, (now, blocks) in enumerate(chats(seed, count, gap_s)):
        while ends and ends[0][0] <= now:
            gone = pods[heapq.heappop(ends)[1]]
            gone.requests -= 1
            gone.since_poll -= 1
        if now >= next_poll:
            next_poll = now + POLL_S
            for pod in pods.values():
                pod.polled, pod.since_poll = pod.requests, 0
        choice = choose(Ask("m", turn=turn), [pod.view(blocks) for pod in pods.values()], strategy)
        assert choice is not None
        picked = pods[choice.decode]
        least = min(pod.requests for pod in pods.values())
        worst = max(worst, picked.requests - max(LOAD_FACTOR * least, FREE_SEQUENCES))
        hits += picked.cache.known(blocks)
        blocks_seen += len(blocks)
        picked.sent.add(blocks)
        picked.cache.add(blocks)
        picked.requests += 1
        picked.since_poll += 1
        heapq.heappush(ends, (now + rng.uniform(0.5, 6.0), picked.key))
    return Outcome(hits / blocks_seen, worst)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("gap_s", [0.2, 0.1, 0.05])
def test_prefix_aware_beats_round_robin_within_the_queue_bound(seed: int, gap_s: float) -> None:
    aware = simulate("PrefixAware", seed, gap_s=gap_s)
    blind = simulate("RoundRobin", seed, gap_s=gap_s)
    assert 1 - aware.hit_rate < 0.8 * (1 - blind.hit_rate), "a fifth fewer blocks computed again"
    assert aware.worst_excess <= 0, "never worse than 1.2 times the least-loaded pod's queue"


def test_the_simulation_can_tell_a_bad_router() -> None:
    assert simulate("RoundRobin", 1).worst_excess > 0
    assert simulate("LeastLoaded", 1).worst_excess <= 0
