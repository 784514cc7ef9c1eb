"""The flags of `tandem operator`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tandem_contract import ports
from tandem_contract.flags import FlagError, flag


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorFlags:
    """`tandem operator`: turns InferenceServices into running pods."""

    engine_image: str = flag(help="default image of prefill and decode pods")
    image: str = flag(help="default image of gateway and fetch")
    namespace: tuple[str, ...] = flag((), help="namespaces to look after; default: all")
    presets: str | None = flag(None, help="YAML file of presets added to the built-in ones", metavar="FILE")
    platform: str | None = flag(
        None, help="YAML file of what this cluster calls RDMA, load balancers, monitors", metavar="FILE"
    )
    cluster_domain: str = flag("cluster.local", help="DNS domain of the cluster, for status.url")
    leader_elect: bool = flag(True, help="only the holder of the lease writes")
    lease_namespace: str = flag("default", help="namespace of the lease")
    lease_name: str = flag("tandem-operator", help="name of the lease")
    workers: int = flag(3, help="services worked on at the same time")
    resync: float = flag(60.0, help="seconds after which every service is looked at again, events or not")
    host: str = flag("0.0.0.0", help="listen address")
    metrics_port: int = flag(ports.METRICS, help="port of /metrics, /livez, /readyz; 0 picks a free one")
    log_format: Literal["text", "json"] = flag("text", help="log lines")
    log_level: Literal["debug", "info", "warning", "error"] = flag("info", help="least severe log line")

    def check(self) -> None:
        """Raises `FlagError` for impossible values."""
        if self.workers < 1:
            raise FlagError("--workers must be at least 1")
        if self.resync <= 0:
            raise FlagError("--resync must be above 0")
