"""Where the references of a schema lead, whichever keyword their target is under, known or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from tandem_runtime.core.errors import GrammarError

ROOT = "#"


class Place(NamedTuple):
    """Of a schema within the whole."""

    pointer: str
    """As a URI's fragment, with its `#` but not percent-encoded."""
    resource: str
    """The pointer of the schema around it, or of itself, that an `$id` makes the root of its references."""


class References:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._id = "id" if isinstance(root, Mapping) and "draft-04" in str(root.get("$schema")) else "$id"
        self._roots = {ROOT}
        """Pointers of resources."""
        self._resources: dict[str, str] = {}
        """The same by `$id`."""
        self._anchors: dict[tuple[str, str], str] = {}
        """Pointers by resource and name."""
        self._index(root, Place(ROOT, ROOT))

    def follow(self, ref: str, origin: Place) -> tuple[Place, Any]:
        """Where a reference at `origin` leads, and what is there. Raises `GrammarError`."""
        address, _, fragment = ref.partition("#")
        resource = self._resources.get(address) if address else origin.resource
        if fragment and not fragment.startswith("/") and resource is not None:
            pointer = self._anchors.get((resource, fragment))
        else:
            pointer = None if resource is None else resource + unquote(fragment)
        if pointer is not None:
            place, found = Place(ROOT, ROOT), self._root
            for part in pointer.split("/")[1:]:
                name = part.replace("~1", "/").replace("~0", "~")
                found, present = _child(found, name)
                if not present:
                    break
                place = self.below(place, name)
            else:
                return place, found
        raise GrammarError(
            f"'$ref' at {origin.pointer} leads to {ref[:128]!r}, which is not in the schema: put it there"
        )

    def below(self, place: Place, *names: str) -> Place:
        pointer = "/".join([place.pointer, *map(_escaped, names)])
        return Place(pointer, pointer if pointer in self._roots else place.resource)

    def _index(self, value: Any, place: Place) -> None:
        if isinstance(value, list):
            for index, child in enumerate(value):
                self._index(child, Place(f"{place.pointer}/{index}", place.resource))
        if not isinstance(value, Mapping):
            return
        if isinstance(named := value.get(self._id), str):
            if named.startswith("#"):  # as anchors were written in drafts 4 to 7
                self._anchors[place.resource, named[1:]] = place.pointer
            else:
                place = Place(place.pointer, place.pointer)
                self._resources[named.rstrip("#")] = place.pointer
                self._roots.add(place.pointer)
        for key in ("$anchor", "$dynamicAnchor"):
            if isinstance(value.get(key), str):
                self._anchors[place.resource, value[key]] = place.pointer
        for name, child in value.items():
            self._index(child, Place(f"{place.pointer}/{_escaped(name)}", place.resource))


def _child(value: Any, name: str) -> tuple[Any, bool]:
    """And whether there is one."""
    if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
        return value[int(name)], True
    if isinstance(value, Mapping) and name in value:
        return value[name], True
    return None, False


def _escaped(name: str) -> str:
    """As JSON pointers have it (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
