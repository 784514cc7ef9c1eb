from ipaddress import IPv4Network
from itertools import combinations

import pytest
from tandem_cluster.errors import ClusterError
from tandem_cluster.plan import CLUSTERS, Plan

PLANS = [Plan(number) for number in range(CLUSTERS)]


def test_no_two_clusters_share_addresses_or_names() -> None:
    ranges = [network for plan in PLANS for network in (plan.network, plan.services, plan.pods)]
    assert not any(one.overlaps(other) for one, other in combinations(ranges, 2))
    assert len({machine.netns for plan in PLANS for machine in plan.machines}) == sum(
        len(plan.machines) for plan in PLANS
    )
    assert len({plan.folder for plan in PLANS}) == CLUSTERS


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_machines_are_on_the_switch_and_nodes_divide_the_pods(plan: Plan) -> None:
    addresses = [plan.host_address, *(machine.address for machine in plan.machines)]
    assert len(set(addresses)) == len(addresses)
    assert all(address in plan.network for address in addresses)
    assert len(plan.nodes) >= 2
    assert all(node.pods.subnet_of(plan.pods) for node in plan.nodes)
    assert not any(one.pods.overlaps(other.pods) for one, other in combinations(plan.nodes, 2))
    # The kernel takes no longer interface name.
    assert len(plan.name) <= 15


def test_only_the_benchmarking_range_is_used() -> None:
    """A cluster must not take over addresses that the machine's own network may use."""
    reserved = IPv4Network("198.18.0.0/15")
    assert all(network.subnet_of(reserved) for plan in PLANS for network in (plan.network, plan.services, plan.pods))


@pytest.mark.parametrize("number", [-1, CLUSTERS])
def test_a_cluster_number_out_of_range_is_refused(number: int) -> None:
    with pytest.raises(ClusterError, match="--number"):
        Plan(number)


def test_an_unknown_node_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ClusterError, match=r"node-7.*node-1, node-2"):
        Plan(0).node("node-7")
