"""`tandem operator`: waits for the lease, then watches and reconciles until SIGTERM or until the lease is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

import aiohttp
from tandem_contract import env
from tandem_contract.flags import parse

from tandem_operator import platform, presets
from tandem_operator.cluster.client import ApiError, Client, reason_of
from tandem_operator.cluster.credentials import NoCredentials
from tandem_operator.cluster.kinds import INFERENCE_SERVICE
from tandem_operator.cluster.lease import Lease, LeaseLost
from tandem_operator.cluster.mirror import Mirror
from tandem_operator.health import OperatorMetrics, Pulse, serving
from tandem_operator.options import OperatorFlags
from tandem_operator.plan.context import Installation
from tandem_operator.reconcile import Reconciler
from tandem_operator.watching import WatchEnded, watch
from tandem_operator.work_queue import WorkQueue, every

log = logging.getLogger(__name__)

EXIT_LOST_LEASE = 3
ROUNDS_MISSED = 5
"""Resyncs without a finished reconcile after which the operator is no longer alive."""
RETRY_S = 1.0
"""Between two attempts at what has to work before anything is reconciled."""

Result = TypeVar("Result")
Key = tuple[str, str]
"""Namespace and name."""


def run(argv: list[str]) -> int:
    """Exit status: 0 after SIGTERM, 1 for an error it names, 3 when the lease was lost."""
    flags = parse(OperatorFlags, argv, prog="tandem operator")
    configure_logging(flags.log_format, flags.log_level)
    try:
        installation = Installation(
            engine_image=flags.engine_image,
            small_image=flags.image,
            presets=presets.load(Path(flags.presets) if flags.presets else None),
            platform=platform.load(Path(flags.platform)) if flags.platform else platform.Platform(),
            cluster_domain=flags.cluster_domain,
        )
        return asyncio.run(_run(flags, installation))
    except (OSError, NoCredentials, presets.PresetError, platform.PlatformError) as error:
        print(f"tandem operator: {error}", file=sys.stderr)
        return 1


async def _run(flags: OperatorFlags, installation: Installation) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics, pulse = OperatorMetrics(), Pulse(ROUNDS_MISSED * flags.resync)
    identity = f"{os.environ.get(env.POD_NAME) or socket.gethostname()}-{os.getpid()}"
    async with (
        serving(metrics, pulse, flags.host, flags.metrics_port) as port,
        Client(wrote=metrics.wrote, unread=metrics.unread) as client,
    ):
        log.info("metrics and probes on port %d", port)
        lease = Lease(client, flags.lease_namespace, flags.lease_name, identity)
        if flags.leader_elect:
            if not await _until(stop, lease.acquire(), every(flags.resync, pulse.beat)):
                return 0
            log.info("leading as %s", identity)
        lead, status = _lead(client, installation, flags, metrics, pulse), 0
        try:
            await _until(stop, lead, *([lease.hold()] if flags.leader_elect else []))
        except LeaseLost as error:
            log.error("%s", error)
            return EXIT_LOST_LEASE
        except WatchEnded as error:
            log.error("%s", error)
            status = 1
        if flags.leader_elect:
            with contextlib.suppress(ApiError, aiohttp.ClientError, TimeoutError):
                await lease.release()
        return status


async def _lead(
    client: Client, installation: Installation, flags: OperatorFlags, metrics: OperatorMetrics, pulse: Pulse
) -> None:
    queue: WorkQueue[Key] = WorkQueue(waited=metrics.waited.observe)

    def changed(namespace: str, name: str) -> None:
        queue.add((namespace, name))

    mirror = Mirror(client, namespaces=flags.namespace, changed=changed)
    reconciler = Reconciler(client, mirror, installation)
    await _crd_served(client, pulse)
    await _until_it_works("children cannot be listed", mirror.refresh, pulse)
    await ended_first(
        mirror.run(),
        resync(client, queue, flags, metrics, pulse),
        *(work(queue, reconciler, metrics, pulse) for _ in range(flags.workers)),
        # kopf has signal handlers of its own, so SIGTERM ends the watch first.
        watch(changed, flags.namespace, unread=metrics.unread),
    )


async def _crd_served(client: Client, pulse: Pulse) -> None:
    """Returns once there are InferenceServices to watch: kopf looks for the kind once, and helm installs the CRD and
    this operator at the same time.
    """
    while not await _until_it_works("the CRD cannot be looked for", lambda: client.serves(INFERENCE_SERVICE), pulse):
        log.warning("the cluster does not serve InferenceServices yet: waiting for the CRD")
        await asyncio.sleep(RETRY_S)


async def _until_it_works(failing: str, action: Callable[[], Awaitable[Result]], pulse: Pulse) -> Result:
    while True:
        pulse.beat()
        try:
            return await action()
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("%s: %s: %s", failing, type(error).__name__, error)
        await asyncio.sleep(RETRY_S)


async def resync(
    client: Client, queue: WorkQueue[Key], flags: OperatorFlags, metrics: OperatorMetrics, pulse: Pulse
) -> None:
    """Has every service looked at again and again. Events only make it quicker: one that never came costs a round."""
    while True:
        await asyncio.sleep(flags.resync)
        keys: set[Key] = set()
        for namespace in flags.namespace or (None,):
            try:
                keys |= set(await _services(client, namespace))
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
                log.warning(
                    "services of %s cannot be listed: %s: %s",
                    namespace or "all namespaces",
                    type(error).__name__,
                    error,
                )
        for key in keys | metrics.services:
            queue.add(key)
        # With nothing to look after, the round itself is the sign of life.
        if not keys:
            pulse.beat()


async def _services(client: Client, namespace: str | None) -> list[Key]:
    found = await client.list(INFERENCE_SERVICE, namespace)
    return [(item["metadata"]["namespace"], item["metadata"]["name"]) for item in found]


async def work(queue: WorkQueue[Key], reconciler: Reconciler, metrics: OperatorMetrics, pulse: Pulse) -> None:
    while True:
        key = await queue.take()
        began = time.perf_counter()
        try:
            outcome = await reconciler.reconcile(*key)
        except (ApiError, aiohttp.ClientError, TimeoutError, OSError) as error:
            pause = queue.failed(key)
            metrics.errors.labels(reason_of(error)).inc()
            log.warning("%s/%s: %s: %s; again in %.1f s", *key, type(error).__name__, error, pause)
        except Exception:
            queue.failed(key)
            metrics.errors.labels("Bug").inc()
            log.exception("%s/%s: reconcile failed", *key)
        else:
            queue.done(key, again=outcome.again)
            metrics.saw(key, outcome.ready)
        metrics.seconds.observe(time.perf_counter() - began)
        pulse.beat()


async def _until(stop: asyncio.Event, *coroutines: Coroutine[Any, Any, object]) -> bool:
    """Whether one of `coroutines` ended before `stop` was set."""
    return await ended_first(stop.wait(), *coroutines) != 0


async def ended_first(*coroutines: Coroutine[Any, Any, object]) -> int:
    """Which of them ended first; raises its error. All have ended when it returns."""
    tasks = [asyncio.create_task(c) for c in coroutines]
    waiting, ended = set(tasks), list[int]()
    try:
        while not ended:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            # kopf, as it ends, cancels whatever was begun after it: why it ends, its own task tells in a moment.
            ended = [index for index, task in enumerate(tasks) if task in done and not task.cancelled()]
        for index in ended:
            tasks[index].result()
        return ended[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def configure_logging(format: Literal["text", "json"], level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if format == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)
