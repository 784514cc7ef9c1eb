"""The commands that lay the cluster's wires, and those that remove them.

    host -- veth -- [control: bridge] -- veth -- [node-1]
                                      -- veth -- [node-2]

The bridge lives in the control plane's namespace, so that the host's own bridge and iptables settings neither matter
nor change. No namespace has a default route and the host drops what the cluster's routes do not take: nothing leaves
the machine.
"""

from __future__ import annotations

from tandem_cluster.plan import Machine, Node, Plan

Command = tuple[str, ...]

# Routes with a smaller metric win: the drop counts only where, or once, the real route is gone.
_LAST_RESORT = "4096"
POLICIES_QUEUE = 100
"""Where a node's program for NetworkPolicies finds the packets that it judges."""


def up(plan: Plan) -> list[Command]:
    return [
        *_namespaces(plan),
        *_switch(plan),
        *(command for node in plan.nodes for command in _plug_in(plan, node)),
        *_host(plan),
    ]


def down(plan: Plan) -> list[Command]:
    """Each may fail, because its object is already gone or was never made; none touches what `up` did not make."""
    return [
        ("ip", "link", "delete", plan.name),
        *(("ip", "route", "delete", *route) for route in _drops(plan)),
        *(("ip", "netns", "delete", machine.netns) for machine in plan.machines),
    ]


def set_link(plan: Plan, node: Node, state: str) -> Command:
    """Pulls or plugs a node's cable: `state` is `down` or `up`."""
    return (*_ip(plan.control), "link", "set", node.name, state)


def _namespaces(plan: Plan) -> list[Command]:
    commands: list[Command] = []
    for machine in plan.machines:
        commands += [
            ("ip", "netns", "add", machine.netns),
            (*_ip(machine), "link", "set", "lo", "up"),
            _sysctl(machine, "net.ipv4.ip_forward=1"),
        ]
    return commands


def _switch(plan: Plan) -> list[Command]:
    control = plan.control
    return [
        (*_ip(control), "link", "add", "switch", "type", "bridge"),
        (*_ip(control), "address", "add", f"{control.address}/{plan.network.prefixlen}", "dev", "switch"),
        (*_ip(control), "link", "set", "switch", "up"),
        # What the switch passes on is not the control plane's own traffic: its Service rules must not rewrite it.
        _sysctl(control, "net.bridge.bridge-nf-call-iptables=0"),
        # Or it would tell the host of a shorter way to each pod, which stays in use when that node is lost.
        _sysctl(control, "net.ipv4.conf.all.send_redirects=0"),
        _sysctl(control, "net.ipv4.conf.switch.send_redirects=0"),
    ]


def _plug_in(plan: Plan, node: Node) -> list[Command]:
    ip, control = _ip(node), _ip(plan.control)
    return [
        (*control, "link", "add", node.name, "type", "veth", "peer", "name", "eth0", "netns", node.netns),
        (*control, "link", "set", node.name, "master", "switch", "up"),
        (*ip, "address", "add", f"{node.address}/{plan.network.prefixlen}", "dev", "eth0"),
        (*ip, "link", "set", "eth0", "up"),
        # A node's own connections to a Service are rewritten on their way out, so there must be a way out.
        (*ip, "route", "add", str(plan.services), "dev", "eth0"),
        *((*ip, "route", "add", str(other.pods), "via", str(other.address)) for other in plan.nodes if other != node),
        (*control, "route", "add", str(node.pods), "via", str(node.address)),
        _judged(node),
    ]


def _judged(node: Node) -> Command:
    """The first packet of every connection to or from a pod, once Services' addresses are rewritten; not kubelet's own,
    whose probes no policy forbids."""
    return (
        *("nsenter", f"--net=/run/netns/{node.netns}", "iptables", "--wait", "--table", "mangle"),
        *("--append", "POSTROUTING", "--match", "conntrack", "--ctstate", "NEW"),
        *("--match", "owner", "!", "--uid-owner", "0"),
        *("--jump", "NFQUEUE", "--queue-num", str(POLICIES_QUEUE), "--queue-bypass"),
    )


def _host(plan: Plan) -> list[Command]:
    control = plan.control
    return [
        *(("ip", "route", "add", *route) for route in _drops(plan)),
        ("ip", "link", "add", plan.name, "type", "veth", "peer", "name", "host", "netns", control.netns),
        (*_ip(control), "link", "set", "host", "master", "switch", "up"),
        ("ip", "address", "add", f"{plan.host_address}/{plan.network.prefixlen}", "dev", plan.name),
        ("ip", "link", "set", plan.name, "up"),
        ("ip", "route", "add", str(plan.pods), "via", str(control.address)),
        ("ip", "route", "add", str(plan.services), "via", str(control.address)),
    ]


def _drops(plan: Plan) -> list[Command]:
    ranges = (plan.network, plan.pods, plan.services)
    return [("blackhole", str(range), "metric", _LAST_RESORT) for range in ranges]


def _ip(machine: Machine) -> Command:
    return ("ip", "-netns", machine.netns)


def _sysctl(machine: Machine, setting: str) -> Command:
    return ("nsenter", f"--net=/run/netns/{machine.netns}", "sysctl", "--quiet", "--write", setting)
