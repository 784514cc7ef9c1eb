"""All pods the gateway knows, kept current: follows the endpoints, polls each pod on its own, picks for requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import aiohttp
import msgspec
from tandem_contract.status import STATUS_PATH, PodStatus

from tandem_gateway.endpoints import Endpoint, Endpoints, by_address
from tandem_gateway.metrics import GatewayMetrics
from tandem_gateway.pod import Pod, is_gone
from tandem_gateway.prompt import Prompt
from tandem_gateway.routing import Ask, Strategy, choose, served_models

log = logging.getLogger(__name__)

MIN_POLL_TIMEOUT_S = 1.0
OWN_DELAY_S = 0.1
"""A timeout that comes later than this after its time says that the gateway was busy, not that the pod is frozen."""
FOLLOW_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Picked:
    decode: Pod
    prefill: Pod | None
    spare: Pod | None


class Fleet:
    """`async with`: follows the endpoints until the block ends."""

    def __init__(
        self,
        endpoints: Endpoints,
        metrics: GatewayMetrics,
        *,
        strategy: Strategy,
        connect_timeout: float,
        status_interval: float,
    ) -> None:
        self._endpoints = endpoints
        self._metrics = metrics
        self._strategy = strategy
        self._connect_timeout = connect_timeout
        self._status_interval = status_interval
        self._pods: dict[str, Pod] = {}
        self._pollers: dict[str, asyncio.Task[None]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._follower: asyncio.Task[None] | None = None
        self._turn = 0
        self._settled = False

    async def __aenter__(self) -> Fleet:
        self._follower = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._follower is not None
        self._follower.cancel()
        await asyncio.wait([self._follower])
        self._update(frozenset())
        if self._closing:
            await asyncio.wait(self._closing)

    async def _follow(self) -> None:
        while True:
            try:
                await self._endpoints.run(self._update)
            except Exception:
                log.exception("following the endpoints failed; again in %.1f s", FOLLOW_AGAIN_S)
            await asyncio.sleep(FOLLOW_AGAIN_S)

    def settle(self) -> None:
        """Streams stay where they are from now on: who ends this gateway may be ending the pods too, all at once."""
        self._settled = True

    @property
    def can_answer(self) -> bool:
        return any(pod.state == "ready" and pod.status and pod.status.role != "prefill" for pod in self._pods.values())

    def snapshot(self) -> list[dict[str, str | int]]:
        """What is known of every pod, for people to look at, decode pods last."""
        pods = sorted(self._pods.values(), key=lambda pod: (_role(pod) != "prefill", pod.key))
        return [pod.snapshot() for pod in pods]

    def models(self) -> Collection[str]:
        return served_models(pod.view(Prompt()) for pod in self._pods.values())

    def pick(
        self,
        prompt: Prompt,
        *,
        wants_prefill: bool,
        exclude: frozenset[str] = frozenset(),
        continuation: str | None = None,
    ) -> Picked | None:
        self._turn += 1
        views = {pod.key: pod.view(prompt) for pod in self._pods.values()}
        ask = Ask(prompt.model, wants_prefill, exclude, self._turn, continuation)
        choice = choose(ask, list(views.values()), self._strategy)
        if choice is None:
            return None
        found = views[choice.prefill or choice.decode].known_blocks
        self._metrics.prefix_blocks.labels("true").inc(found)
        self._metrics.prefix_blocks.labels("false").inc(len(prompt.blocks) - found)
        decode = self._sent(choice.decode, "decode", prompt)
        prefill = self._sent(choice.prefill, "prefill", prompt) if choice.prefill else None
        return Picked(decode, prefill, self._pods[choice.spare] if choice.spare else None)

    @contextlib.contextmanager
    def occupied(self, pod: Pod) -> Iterator[None]:
        """Counts a request that is at `pod`."""
        pod.in_flight += 1
        try:
            yield
        finally:
            pod.in_flight -= 1

    def _sent(self, key: str, role: str, prompt: Prompt) -> Pod:
        pod = self._pods[key]
        pod.sent(prompt)
        self._metrics.picks.labels(key, role).inc()
        return pod

    def _update(self, endpoints: frozenset[Endpoint]) -> None:
        wanted = by_address(endpoints)
        for key, pod in list(self._pods.items()):
            if key in wanted:
                pod.endpoint = wanted[key]
            else:
                self._remove(pod)
        for key in sorted(wanted.keys() - self._pods.keys()):
            self._add(wanted[key])

    def _add(self, endpoint: Endpoint) -> None:
        # limit=0: aiohttp's default of 100 connections would queue requests behind a slow pod's streams.
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30.0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        pod = Pod(endpoint, session)
        self._pods[pod.key] = pod
        self._pollers[pod.key] = asyncio.create_task(self._poll_forever(pod))

    def _remove(self, pod: Pod) -> None:
        """Streams of a removed pod go on, there or elsewhere; its session closes after the last of them."""
        pod.removed()
        del self._pods[pod.key]
        poller = self._pollers.pop(pod.key)
        poller.cancel()
        closing = asyncio.create_task(self._close_when_idle(pod, poller))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        for role in ("prefill", "decode"):
            with contextlib.suppress(KeyError):
                self._metrics.picks.remove(pod.key, role)
        self._count_pods()

    async def _close_when_idle(self, pod: Pod, poller: asyncio.Task[None]) -> None:
        await asyncio.wait([poller])
        while pod.in_flight:
            self._evacuate(pod)
            await asyncio.sleep(self._status_interval)
        await pod.session.close()

    async def _poll_forever(self, pod: Pod) -> None:
        while True:
            try:
                await self._poll(pod)
            except Exception as error:
                # Whatever it was: a poller that ends would leave the pod as it is for good.
                log.exception("poll failed", extra={"fields": {"pod": pod.key}})
                pod.poll_failed(f"{type(error).__name__}: {error}")
            if pod.state in ("draining", "not_ready"):
                self._evacuate(pod)
            self._count_pods()
            await asyncio.sleep(self._status_interval)

    async def _poll(self, pod: Pod) -> None:
        mark = pod.poll_began()
        timeout = max(MIN_POLL_TIMEOUT_S, 2 * self._status_interval)
        due = asyncio.get_running_loop().time() + timeout
        try:
            async with pod.session.get(
                pod.url.with_path(STATUS_PATH), timeout=aiohttp.ClientTimeout(total=timeout)
            ) as answer:
                answer.raise_for_status()
                pod.polled(msgspec.json.decode(await answer.read(), type=PodStatus), mark)
        except aiohttp.ClientConnectorError as error:
            if is_gone(error):
                pod.went_down(str(error))
            else:
                pod.poll_failed(str(error))
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError) as error:
            if asyncio.get_running_loop().time() - due < OWN_DELAY_S:
                pod.poll_failed(f"{type(error).__name__}: {error}", silent=isinstance(error, TimeoutError))

    def _evacuate(self, pod: Pod) -> None:
        """Moves the streams of a pod that is about to end, as soon as there is another pod for them."""
        if self._settled or pod.status is None:
            return
        if any(other.can_take_over(pod.status) for other in self._pods.values()):
            pod.move_streams()

    def _count_pods(self) -> None:
        counts = Counter((_role(pod), pod.state) for pod in self._pods.values())
        for role in ("prefill", "decode", "both"):
            for state in ("ready", "not_ready", "draining", "down"):
                self._metrics.pods.labels(role, state).set(counts[role, state])


def _role(pod: Pod) -> str:
    return pod.status.role if pod.status else pod.endpoint.role
