"""Which decode rows attend together: a gathered batch is as wide as its longest row, so lengths should be alike."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PADDING = 2
FREE_PADDING = 8
"""Pages: a row is padded to at most `MAX_PADDING` times its own pages plus this; a group of its own would cost more."""


def group_by_length(pages: Sequence[int]) -> list[list[int]]:
    """Row indices in groups of like length; all rows in their own order where one group will do."""
    if not pages or max(pages) <= MAX_PADDING * min(pages) + FREE_PADDING:
        return [list(range(len(pages)))] if pages else []
    groups: list[list[int]] = []
    for row in sorted(range(len(pages)), key=lambda i: -pages[i]):
        if groups and pages[groups[-1][0]] <= MAX_PADDING * pages[row] + FREE_PADDING:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
