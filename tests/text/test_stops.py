from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_runtime.text.stops import StopMatcher

# Few letters, so that stops overlap with the text and with one another all the time.
LETTERS = "ab\n"
PIECES = st.lists(st.text(LETTERS, max_size=4), max_size=12)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first moment at which the text ends in a stop."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(pieces=PIECES, stops=STOPS)
def test_as_naive_search_however_the_text_is_cut(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = "".join(map(matcher.push, pieces)) + matcher.flush()
    assert (shown, matcher.stopped) == naive("".join(pieces), stops)


@given(pieces=PIECES, stops=STOPS)
def test_holds_back_no_more_than_needed(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = text = ""
    for piece in pieces:
        text += piece
        shown += matcher.push(piece)
        if matcher.stopped:
            break
        held = text.removeprefix(shown)
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [(["Hel", "lo\n", "\nUser: x"], "Hello"), (["a\n", "b\n\n"], "a\nb"), (["\n", "\n"], ""), (["a\n"], "a\n")],
)
def test_across_token_borders(pieces: list[str], shown: str) -> None:
    matcher = StopMatcher(["\n\n"])
    assert "".join(map(matcher.push, pieces)) + matcher.flush() == shown


def test_nothing_follows_a_stop() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == "a"
    assert matcher.push("c") == ""
    assert matcher.flush() == ""
