"""What is wrong with a file that a flag names, in one line that begins with the flag."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tandem_contract.api_keys import ApiKeys
from tandem_contract.flags import FlagError
from tandem_contract.ticket import keys_from_file

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "there is no such file"),
    "folder": (lambda path: path.mkdir(), "it is a folder"),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00k"), "it is not UTF-8 text"),
    "empty": (lambda path: path.write_text("\n \n"), "no API key found"),
}


@pytest.mark.parametrize(("make", "reason"), BAD.values(), ids=BAD)
def test_api_key_files(tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
    path = tmp_path / "keys"
    make(path)
    with pytest.raises(FlagError) as error:
        ApiKeys.from_file(str(path))
    assert str(error.value) == f"--api-key-file {path}: {reason}; write one key per line"


def test_ticket_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("short\n")
    with pytest.raises(FlagError, match=r"^--ticket-key-file .*: a ticket key has 5 bytes, needs at least 16; "):
        keys_from_file(str(path))
    path.write_text("k" * 16)
    assert keys_from_file(str(path)).get() == (b"k" * 16,)
