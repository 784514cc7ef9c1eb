"""Names and addresses of one test cluster: all that must not clash with another cluster or with the host's network."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from tandem_cluster.errors import ClusterError

# RFC 2544's benchmarking range: no network that this machine could be attached to may use it.
ADDRESSES = IPv4Network("198.18.0.0/15")
_MACHINES = IPv4Network("198.18.0.0/17")
_SERVICES = IPv4Network("198.18.128.0/17")
_PODS = IPv4Network("198.19.0.0/16")

CLUSTERS = 16
NODES = 2
DNS_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Machine:
    """A pretended machine: a network namespace, its address, and a folder with its /run, /var/lib and /var/log."""

    name: str
    netns: str
    address: IPv4Address
    folder: Path


@dataclass(frozen=True)
class Node(Machine):
    """A machine that runs a kubelet."""

    pods: IPv4Network
    cgroup: str


@dataclass(frozen=True)
class Plan:
    number: int

    def __post_init__(self) -> None:
        if not 0 <= self.number < CLUSTERS:
            raise ClusterError(f"there is no cluster {self.number}: --number (or $E2E_CLUSTER) is 0 to {CLUSTERS - 1}")

    @property
    def name(self) -> str:
        """Also the host's network interface, hence at most 15 characters."""
        return f"tandem-e2e-{self.number}"

    @property
    def folder(self) -> Path:
        return Path("/var/lib") / self.name

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def network(self) -> IPv4Network:
        """Where the host, the control plane and the nodes have their addresses: one switch."""
        return _nth(_MACHINES, 24, self.number)

    @property
    def services(self) -> IPv4Network:
        return _nth(_SERVICES, 22, self.number)

    @property
    def pods(self) -> IPv4Network:
        return _nth(_PODS, 20, self.number)

    @property
    def host_address(self) -> IPv4Address:
        return self.network[1]

    @property
    def control(self) -> Machine:
        return Machine("control", f"{self.name}-control", self.network[2], self.folder / "control")

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._node(index) for index in range(1, NODES + 1))

    @property
    def machines(self) -> tuple[Machine, ...]:
        return (self.control, *self.nodes)

    @property
    def api_server(self) -> str:
        return f"https://{self.control.address}:6443"

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise ClusterError(
            f"{self.name} has no node {name!r}: choose one of {', '.join(node.name for node in self.nodes)}"
        )

    def _node(self, index: int) -> Node:
        name = f"node-{index}"
        return Node(
            name=name,
            netns=f"{self.name}-{name}",
            address=self.network[10 + index],
            folder=self.folder / name,
            pods=_nth(self.pods, 24, index),
            cgroup=f"/{self.name}/{name}",
        )


def _nth(network: IPv4Network, prefix: int, index: int) -> IPv4Network:
    size = 1 << (32 - prefix)
    subnet = IPv4Network((int(network.network_address) + index * size, prefix))
    assert subnet.subnet_of(network)
    return subnet
