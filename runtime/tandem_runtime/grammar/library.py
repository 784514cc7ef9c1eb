"""Compiled grammars by their text: all that somebody holds, and some that were used lately."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from weakref import WeakValueDictionary

from llguidance import LLMatcher

RECENT = 128
RECENT_CHARS = 1 << 20
"""Of the texts of what nobody may need any more. A compiled grammar takes up to 120 bytes for each."""


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class CompiledGrammar:
    """Stays in the library for as long as this object is referred to."""

    text: str
    _beginning: LLMatcher

    def matcher(self) -> LLMatcher:
        """A new one, at its beginning: microseconds, and no memory to speak of."""
        return self._beginning.deep_copy()


class GrammarLibrary:
    """Compiles nothing. `find` may be called on any thread, the rest on one."""

    def __init__(self, *, recent: int = RECENT) -> None:
        """`recent`: how many are kept, of those used last, whether or not somebody holds them."""
        self._all: WeakValueDictionary[str, CompiledGrammar] = WeakValueDictionary()
        self._recent: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self._recent_chars = 0
        self._capacity = recent

    def find(self, text: str) -> CompiledGrammar | None:
        return self._all.get(text)

    def use(self, text: str) -> CompiledGrammar | None:
        found = self.find(text)
        if found is not None:
            self._touch(found)
        return found

    def add(self, text: str, matcher: LLMatcher) -> CompiledGrammar:
        """`matcher`: of `text`, at its beginning."""
        compiled = self._all[text] = CompiledGrammar(text, matcher)
        self._touch(compiled)
        return compiled

    def _touch(self, compiled: CompiledGrammar) -> None:
        if compiled.text not in self._recent:
            self._recent_chars += len(compiled.text)
        self._recent[compiled.text] = compiled
        self._recent.move_to_end(compiled.text)
        while len(self._recent) > self._capacity or self._recent_chars > RECENT_CHARS:
            text, _ = self._recent.popitem(last=False)
            self._recent_chars -= len(text)
