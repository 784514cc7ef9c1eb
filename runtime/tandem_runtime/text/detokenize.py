"""Token ids to text, one token at a time, never half a character.

A token is a run of bytes, so a stream of tokens is a stream of bytes that an incremental UTF-8 decoder cuts only
between characters. This costs O(1) per token, where decoding a growing list of ids costs O(n).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")

PieceToBytes = Callable[[str], bytes]


class TokenBytes(dict[int, bytes]):
    """Bytes of each token id, computed when first asked for; `b""` for ids without a token and for `hidden` ones."""

    def __init__(
        self, piece_of: Callable[[int], str | None], piece_to_bytes: PieceToBytes, *, hidden: Container[int] = ()
    ) -> None:
        super().__init__()
        self._piece_of = piece_of
        self._piece_to_bytes = piece_to_bytes
        self._hidden = hidden

    def __missing__(self, token_id: int) -> bytes:
        piece = None if token_id in self._hidden else self._piece_of(token_id)
        value = self[token_id] = b"" if piece is None else self._piece_to_bytes(piece)
        return value


class IncrementalDetokenizer:
    """The text of one sequence. Bytes of an unfinished character wait; at the end of a sequence they are dropped."""

    __slots__ = ("_decode", "_table")

    def __init__(self, table: TokenBytes) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_id: int) -> str:
        return self._decode(self._table[token_id])


class Placed(NamedTuple):
    text: str
    offsets: list[int]
    """Characters of `text` before each token; tokens of one character begin where it does."""


def placed(pieces: Iterable[bytes]) -> Placed:
    """The text of a whole sequence of tokens."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    parts: list[str] = []
    offsets: list[int] = []
    length = 0
    for piece in pieces:
        offsets.append(length)
        parts.append(decode(piece))
        length += len(parts[-1])
    return Placed("".join(parts) + decode(b"", True), offsets)


def piece_to_bytes(decoder: Mapping[str, Any]) -> PieceToBytes | None:
    """How pieces of a vocabulary spell bytes, from the `decoder` section of a tokenizer.json.

    Byte-level BPE (GPT-2, Qwen, Llama 3) and SentencePiece with byte fallback (Llama 2); None for any other kind.
    """
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return _byte_level
    if "ByteFallback" in kinds:
        return _byte_fallback
    return None


def _byte_level(piece: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHAR[char] for char in piece)
    except KeyError:  # an added token outside the alphabet stands for itself
        return piece.encode()


def _byte_fallback(piece: str) -> bytes:
    match = _BYTE_PIECE.fullmatch(piece)
    return bytes.fromhex(match[1]) if match else piece.replace("▁", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 bytes stand for themselves, the other 68 for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHAR = _byte_alphabet()
