"""What a dashboard is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    title: str
    about: str
    queries: dict[str, str]
    """Expression by legend."""
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 7
    stacked: bool = False
    limits: tuple[float, float] | None = None
    """Values from which it turns orange and red."""
    most: float | None = None


@dataclass(frozen=True)
class Row:
    title: str
    panels: list[Panel]
