"""When a child already is as it should be: too strict writes for ever, too lax leaves a hand-edited child alone."""

from __future__ import annotations

from typing import Any

import pytest
from tandem_operator.cluster.covers import covers

QUEUE: dict[str, Any] = {
    "type": "Pods",
    "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "5"}},
}
CPU = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}
OF_ONE_POD = {**QUEUE, "pods": {**QUEUE["pods"], "metric": {"name": "q", "selector": {"matchLabels": {"pod": "a"}}}}}
ENV = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]


@pytest.mark.parametrize(
    ("actual", "desired"),
    [
        ({"a": 1, "defaulted": 2}, {"a": 1}),
        ({"cpu": "1"}, {"cpu": "1000m"}),
        ({"memory": "1Gi"}, {"memory": "1024Mi"}),
        ({"cpu": "2"}, {"cpu": 2}),
        ({}, {"annotations": {}}),
        ({}, {"readOnly": False}),
        ({}, {"securityContext": {"add": []}}),
        ({"env": [*ENV, {"name": "injected", "value": "x"}]}, {"env": ENV}),
        ({"env": ENV[::-1]}, {"env": ENV}),
        ({"tolerations": [{"key": "a", "effect": "NoSchedule"}]}, {"tolerations": [{"key": "a"}]}),
        ({"selector": {"app": "a"}}, {"selector": {"app": "a"}}),
        ({"subjects": [{"name": "a"}]}, {"subjects": [{"name": "a"}]}),
        ({"metrics": [CPU, QUEUE]}, {"metrics": [QUEUE, CPU]}),
    ],
)
def test_nothing_to_write(actual: Any, desired: Any) -> None:
    assert covers(actual, desired)


@pytest.mark.parametrize(
    ("actual", "desired"),
    [
        ({"a": 1}, {"a": 2}),
        ({}, {"a": 1}),
        ({"memory": "1G"}, {"memory": "1Gi"}),
        ({"env": ENV[:1]}, {"env": ENV}),
        ({"env": [{"name": "A", "value": "9"}, ENV[1]]}, {"env": ENV}),
        ({"args": ["b", "a"]}, {"args": ["a", "b"]}),
        ({"args": ["a", "b"]}, {"args": ["a"]}),
        ({"rules": [{"verbs": ["get"]}, {"verbs": ["*"]}]}, {"rules": [{"verbs": ["get"]}]}),
        ({"selector": {"app": "a", "more": "b"}}, {"selector": {"app": "a"}}),
        ({"suspend": True}, {"suspend": False}),
        ({"readOnly": True}, {"readOnly": True, "allowPrivilegeEscalation": False}),
        ({"name": "sa"}, {"name": "sa", "automountServiceAccountToken": False}),
        ({"subjects": [{"name": "a"}, {"name": "b"}]}, {"subjects": [{"name": "a"}]}),
        ({"replicas": 3}, {"replicas": 0}),
        ({"metrics": [QUEUE, CPU]}, {"metrics": [QUEUE]}),
        ({"metrics": [QUEUE, OF_ONE_POD]}, {"metrics": [QUEUE]}),
        ({"metrics": [OF_ONE_POD]}, {"metrics": [QUEUE]}),
        ({"metrics": [QUEUE]}, {"metrics": [QUEUE, CPU]}),
        ({"metrics": [{"type": "Pods", "pods": {"metric": {"name": "q"}}}]}, {"metrics": [QUEUE]}),
    ],
)
def test_to_be_written(actual: Any, desired: Any) -> None:
    assert not covers(actual, desired)
