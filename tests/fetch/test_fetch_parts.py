from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_fetch.checks import Composite, Mismatch, SizeOnly, WholeFile, choose_check
from tandem_fetch.digests import SegmentHasher, Segments, file_digest
from tandem_fetch.partial import Part, PartialFile, journal_path, plan_parts

MIB = 2**20


@given(st.integers(0, 10_000), st.integers(1, 500), st.none() | st.integers(1, 700))
def test_parts_cover_the_file_once_and_end_on_segments(size: int, target: int, segment: int | None) -> None:
    parts = plan_parts(size, target, segment)
    position = 0
    for part in parts:
        assert part.start == position
        assert 0 < part.length <= max(target, segment or 0)
        assert segment is None or part.start % segment == 0
        position += part.length
    assert position == size


@given(st.binary(max_size=300), st.integers(1, 60), st.lists(st.integers(1, 50), max_size=20))
def test_segments_are_hashed_however_the_stream_is_cut(data: bytes, segment: int, cuts: list[int]) -> None:
    hasher = SegmentHasher(Segments(segment, "md5"))
    rest = memoryview(data)
    for cut in cuts:
        hasher.update(rest[:cut])
        rest = rest[cut:]
    hasher.update(rest)
    expected = [hashlib.md5(data[start : start + segment]).digest() for start in range(0, len(data), segment)]
    assert hasher.finish() == expected


def test_segments_of_a_file_are_those_of_the_stream(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 10)
    assert Segments(512, "md5").of_file(path, 512, 600) == [
        hashlib.md5(path.read_bytes()[512:1024]).digest(),
        hashlib.md5(path.read_bytes()[1024:1112]).digest(),
    ]


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256", "crc32"])
def test_file_digests(algorithm: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"123456789")
    known = {
        "md5": "25f9e794323b453885f5181f1b624d0b",
        "sha1": "f7c3bc1d808e04732adf679965ccc34ca7ae3441",
        "sha256": "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
        "crc32": "cbf43926",
    }
    assert file_digest(path, algorithm) == known[algorithm]  # type: ignore[arg-type]


MD5 = "0" * 32
XXH3 = Segments(64, "xxh3")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("size", "etag", "part_size", "stored", "md5", "check"),
    [
        (9, MD5, None, {}, True, WholeFile("md5", MD5)),
        (9, MD5, None, {}, False, SizeOnly("the store keeps no checksum of it", XXH3)),
        (9, MD5, None, {"sha256": b64(bytes(32))}, False, WholeFile("sha256", "0" * 64)),
        (9, MD5, None, {"crc32": b64(b"abcd"), "sha1": b64(bytes(20))}, True, WholeFile("crc32", "61626364")),
        (9, MD5, None, {"crc32": "not base64"}, True, WholeFile("md5", MD5)),
        (9, MD5, None, {"crc32": b64(b"too long")}, False, SizeOnly("the store keeps no checksum of it", XXH3)),
        (
            20,
            f"{MD5}-3",
            8,
            {"crc32": f"{b64(b'abcd')}-3"},
            True,
            Composite("crc32", "61626364-3", (8,), False, Segments(8, "crc32")),
        ),
        (9, "12345678", None, {}, True, SizeOnly("the store keeps no checksum of it", XXH3)),
        (20, f"{MD5}-3", 8, {}, True, Composite("md5", f"{MD5}-3", (8,), False, Segments(8, "md5"))),
        (200, f"{MD5}-2", 100, {}, True, Composite("md5", f"{MD5}-2", (100,), False, None)),
        (20, f"{MD5}-1", None, {}, True, Composite("md5", f"{MD5}-1", (20,), False, Segments(20, "md5"))),
        (20, f"{MD5}-2", 0, {}, True, Composite("md5", f"{MD5}-2", (), True, XXH3)),
        (44, f"{MD5}-3", None, {}, True, Composite("md5", f"{MD5}-3", (), True, XXH3)),
        (20 * MIB, f"{MD5}-3", None, {}, True, Composite("md5", f"{MD5}-3", (8 * MIB,), True, XXH3)),
        (20 * MIB, f"{MD5}-3", 5 * MIB, {}, True, Composite("md5", f"{MD5}-3", (8 * MIB,), True, XXH3)),
        (9, "opaque", None, {}, True, SizeOnly("the store keeps no checksum of it", XXH3)),
    ],
)
def test_the_strongest_check_is_chosen(
    size: int, etag: str, part_size: int | None, stored: dict[str, str], md5: bool, check: object
) -> None:
    chosen = choose_check(
        size=size, etag=etag, part_size=part_size, stored=stored, etag_is_md5=md5, stream_limit=64  # type: ignore[arg-type]
    )  # fmt: skip
    assert chosen == check


def test_parts_of_a_guessed_size_are_digested_while_they_stream(tmp_path: Path) -> None:
    """Symptom: where the store does not tell the part size, the whole model was read back from the disk."""
    data = [b"a" * (8 * MIB), b"b" * MIB]
    md5s = [hashlib.md5(part).digest() for part in data]
    etag = f"{hashlib.md5(b''.join(md5s)).hexdigest()}-2"
    check = choose_check(
        size=9 * MIB, etag=etag, part_size=None, stored={}, etag_is_md5=True, stream_limit=16 * MIB
    )  # fmt: skip
    assert check.streamed == Segments(8 * MIB, "md5")
    assert check.verify(tmp_path / "not read", md5s) == "md5-multipart"


def test_a_guessed_part_size_that_fits_nothing_is_told_apart_from_corruption(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10)
    etag = hashlib.md5(hashlib.md5(b"x" * 6).digest() + hashlib.md5(b"x" * 4).digest()).hexdigest() + "-2"

    def verify(*candidates: int, guessed: bool) -> str:
        return Composite("md5", etag, candidates, guessed, streamed=None).verify(path, [])

    assert verify(5, 6, guessed=True) == "md5-multipart"
    assert verify(5, 7, guessed=True).startswith("size (part size")
    with pytest.raises(Mismatch):
        verify(5, guessed=False)


PARTS = [Part(0, 4), Part(4, 4)]


def test_a_journal_survives_until_the_file_is_published(tmp_path: Path) -> None:
    staged = tmp_path / "stage/a.part"
    first = PartialFile(staged, size=8, identity="v1")
    first.write(0, memoryview(b"abcd"))
    first.record(PARTS[0], [b"\x01" * 16])
    first.close()
    second = PartialFile(staged, size=8, identity="v1")
    assert second.finished(PARTS[0]) == [b"\x01" * 16]
    assert second.finished(PARTS[1]) is None
    second.write(4, memoryview(b"efgh"))
    second.publish(tmp_path / "final/a")
    assert (tmp_path / "final/a").read_bytes() == b"abcdefgh"
    assert not staged.exists()
    assert not journal_path(staged).exists()


@pytest.mark.parametrize("torn", [b'{"start": 4, "le', b'{"start": 4, "length": 4, "digests": []}'])
def test_a_line_torn_by_a_kill_is_ignored(torn: bytes, tmp_path: Path) -> None:
    staged = tmp_path / "a.part"
    first = PartialFile(staged, size=8, identity="v1")
    first.record(PARTS[0], [])
    first.close()
    with journal_path(staged).open("ab") as journal:
        journal.write(torn)
    second = PartialFile(staged, size=8, identity="v1")
    assert second.finished(PARTS[0]) == []
    assert second.finished(PARTS[1]) is None
    second.record(PARTS[1], [])
    second.close()
    third = PartialFile(staged, size=8, identity="v1")
    assert third.finished(PARTS[1]) == []
    third.close()


@pytest.mark.parametrize(
    "torn",
    [b"\0" * 40, b'{"start": 4, "le', b"[]", b'{"start": 4, "length": 4, "md5": []}'],
    ids=["zeros", "half", "foreign", "of a former version"],
)
def test_a_line_torn_amid_others_costs_only_what_follows(torn: bytes, tmp_path: Path) -> None:
    """Symptom: after a power loss or a full disk the journal could not be read, and every next try failed at it."""
    staged = tmp_path / "a.part"
    first = PartialFile(staged, size=8, identity="v1")
    first.record(PARTS[0], [])
    first.close()
    with journal_path(staged).open("ab") as journal:
        journal.write(torn + b'\n{"start": 4, "length": 4, "digests": []}\n')
    second = PartialFile(staged, size=8, identity="v1")
    assert second.finished(PARTS[0]) == []
    assert second.finished(PARTS[1]) is None
    second.close()


@pytest.mark.parametrize(
    "journal", [b"", b"\0" * 100, b"[]\n", json.dumps({"size": 8, "identity": "v0"}).encode() + b"\n"]
)
def test_a_foreign_or_broken_journal_starts_afresh(journal: bytes, tmp_path: Path) -> None:
    staged = tmp_path / "a.part"
    staged.write_bytes(b"12345678")
    journal_path(staged).write_bytes(journal)
    partial = PartialFile(staged, size=8, identity="v1")
    assert partial.finished(PARTS[0]) is None
    partial.close()
