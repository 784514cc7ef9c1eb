import pytest
from tandem_cluster import network
from tandem_cluster.network import Command
from tandem_cluster.plan import Plan

PLAN = Plan(3)


def _on_host(commands: list[Command]) -> list[Command]:
    return [command for command in commands if command[0] == "ip" and command[1] != "-netns"]


def test_no_namespace_gets_a_default_route() -> None:
    routes = [command for command in network.up(PLAN) if "route" in command]
    assert not any({"default", "0.0.0.0/0"} & set(command) for command in routes)


def test_the_host_drops_each_range_before_it_has_a_way_there() -> None:
    """A packet to a pod of a cluster that is half there must not take the host's default route."""
    commands = network.up(PLAN)
    for taken in (PLAN.network, PLAN.pods, PLAN.services):
        drop = commands.index(("ip", "route", "add", "blackhole", str(taken), "metric", "4096"))
        assert drop < commands.index(("ip", "link", "set", PLAN.name, "up"))


def test_the_host_gets_only_an_interface_routes_and_namespaces() -> None:
    made = {command[1:3] for command in _on_host(network.up(PLAN))}
    assert made == {("netns", "add"), ("link", "add"), ("link", "set"), ("address", "add"), ("route", "add")}
    assert not any(command[0] in ("iptables", "sysctl") for command in network.up(PLAN))


@pytest.mark.parametrize("program", ["sysctl", "iptables"])
def test_settings_are_changed_inside_of_namespaces_only(program: str) -> None:
    settings = [command for command in network.up(PLAN) if program in command]
    assert settings
    assert all(command[:2] == ("nsenter", f"--net=/run/netns/{command[1].rpartition('/')[2]}") for command in settings)
    assert all(command[1].rpartition("/")[2].startswith(PLAN.name) for command in settings)


def test_down_removes_what_up_gave_to_the_host() -> None:
    up, down = network.up(PLAN), network.down(PLAN)
    namespaces = [command[3] for command in up if command[:3] == ("ip", "netns", "add")]
    drops = [command[3:] for command in up if command[:4] == ("ip", "route", "add", "blackhole")]
    assert len(drops) == 3
    assert [command[3] for command in down if command[:3] == ("ip", "netns", "delete")] == namespaces
    assert [command[3:] for command in down if command[:3] == ("ip", "route", "delete")] == drops
    # Its routes go with the interface, and the other ends of all cables with the namespaces.
    assert ("ip", "link", "delete", PLAN.name) in down


def test_every_node_reaches_the_pods_of_every_other() -> None:
    commands = network.up(PLAN)
    for node in PLAN.nodes:
        for other in PLAN.nodes:
            route = ("ip", "-netns", node.netns, "route", "add", str(other.pods), "via", str(other.address))
            assert (route in commands) == (node != other)


def test_a_nodes_cable_is_pulled_at_the_switch() -> None:
    command = network.set_link(PLAN, PLAN.node("node-2"), "down")
    assert command == ("ip", "-netns", "tandem-e2e-3-control", "link", "set", "node-2", "down")
