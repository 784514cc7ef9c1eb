"""Pods at fault are avoided for a while, and not remembered for ever."""

from __future__ import annotations

from tandem_runtime.engine.avoidance import Avoided


def test_a_pod_is_avoided_for_so_long() -> None:
    now = 100.0
    avoided = Avoided(lambda: now, 5.0)
    assert "a" not in avoided
    avoided.add("a")
    now = 103.0
    avoided.add("b")
    assert ("a" in avoided, "b" in avoided) == (True, True)
    now = 105.0
    assert ("a" in avoided, "b" in avoided) == (False, True)


def test_addresses_that_never_come_back_are_forgotten() -> None:
    """A decode pod kept every address that a prefill pod of its service had ever had."""
    now = 0.0
    avoided = Avoided(lambda: now, 5.0)
    for index in range(1000):
        now += 1.0
        avoided.add(f"http://10.0.{index // 250}.{index % 250}:8100")
        assert len(avoided) <= 5
