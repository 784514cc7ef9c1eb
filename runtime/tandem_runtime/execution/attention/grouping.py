"""Which decode rows attend together: a gathered batch is as wide as its longest row, so lengths should be alike."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 2
"""Pages gathered per page needed, beyond which another group is cheaper than padding."""


def group_by_length(pages: Sequence[int]) -> list[list[int]]:
    """Row indices in groups that gather at most `MAX_PADDING` times the pages they need; one group if it can be."""
    if not pages:
        return []
    if max(pages) * len(pages) <= MAX_PADDING * sum(pages):
        return [list(range(len(pages)))]
    groups: list[list[int]] = []
    needed = 0
    for row in sorted(range(len(pages)), key=lambda i: -pages[i]):
        longest = pages[groups[-1][0]] if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= MAX_PADDING * (needed + pages[row]):
            groups[-1].append(row)
            needed += pages[row]
        else:
            groups.append([row])
            needed = pages[row]
    return groups
