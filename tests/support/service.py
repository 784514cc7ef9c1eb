"""A gateway with one prefill pod and its decode pods, as processes: what most tests across processes ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from support.serving import EnginePod, Fleet, Gateway


@dataclass
class Service:
    fleet: Fleet
    gateway: Gateway
    prefill: EnginePod
    decodes: list[EnginePod]

    @property
    def decode(self) -> EnginePod:
        """The only one."""
        [one] = self.decodes
        return one

    @property
    def base_url(self) -> str:
        """As OpenAI's clients want it."""
        return f"{self.gateway.url}/v1"

    def again(self, pod: EnginePod) -> EnginePod:
        """Starts another process in the place of a decode pod that ended; it is not ready yet."""
        started = self.fleet.again(pod)
        self.decodes[self.decodes.index(pod)] = started
        return started

    def wait_idle(self) -> None:
        for pod in (*self.decodes, self.prefill):
            pod.wait_idle()


@contextmanager
def serving(
    fleet: Fleet,
    *,
    decodes: int = 1,
    prefill: Mapping[str, Any] | None = None,
    decode: Mapping[str, Any] | None = None,
    **gateway: Any,
) -> Iterator[Service]:
    """All of it ready. `prefill`, `decode`, `gateway`: flags."""
    pods = [fleet.pod("decode", **(decode or {})) for _ in range(decodes)]
    service = Service(
        fleet=fleet,
        prefill=(first := fleet.pod("prefill", **(prefill or {}))),
        decodes=pods,
        gateway=fleet.gateway(pods, [first], **gateway),
    )
    try:
        for process in (*pods, service.prefill, service.gateway):
            process.wait_ready()
        yield service
    finally:
        for process in (service.gateway, *service.decodes, service.prefill):
            process.kill()
