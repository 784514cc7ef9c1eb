from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.execution.attention.grouping import FREE_PADDING, MAX_PADDING, group_by_length


def test_alike_lengths_stay_one_group_in_order() -> None:
    assert group_by_length([5, 7, 6, 5]) == [[0, 1, 2, 3]]
    assert group_by_length([]) == []


def test_one_long_row_does_not_widen_the_others() -> None:
    assert group_by_length([3, 200, 4, 2]) == [[1], [2, 0, 3]]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=64))
def test_every_row_once_and_padding_bounded(pages: list[int]) -> None:
    groups = group_by_length(pages)
    assert sorted(row for group in groups for row in group) == list(range(len(pages)))
    for group in groups:
        longest = max(pages[row] for row in group)
        assert all(longest <= MAX_PADDING * pages[row] + FREE_PADDING for row in group)
