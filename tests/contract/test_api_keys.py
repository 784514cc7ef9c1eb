"""API keys, and the files that keys come from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tandem_contract.api_keys import ApiKeys
from tandem_contract.reloading import ReloadingFile


@pytest.mark.parametrize(
    ("authorization", "accepted"),
    [
        ("Bearer one", True),
        ("bearer  two ", True),
        ("Bearer on", False),
        ("Bearer onetwo", False),
        ("Bearer", False),
        ("Basic one", False),
        ("one", False),
        ("", False),
        (None, False),
        ("Bearer \udcff", False),
    ],
)
def test_a_key_is_accepted_as_a_bearer_token(authorization: str | None, accepted: bool) -> None:
    assert ApiKeys.parse("one\n\n two\n").accept(authorization) == accepted


def test_a_comment_is_no_key() -> None:
    keys = ApiKeys.parse("# of the web shop\none\n  #two\n")
    assert keys.accept("Bearer one")
    assert not any(keys.accept(f"Bearer {guess}") for guess in ("# of the web shop", "of the web shop", "#two", "two"))


def test_an_empty_file_opens_no_door() -> None:
    with pytest.raises(ValueError, match="no API key"):
        ApiKeys.parse("\n# none yet\n")


def test_a_bad_change_keeps_the_last_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text("good\n")
    keys = ReloadingFile(str(path), ApiKeys.parse)
    path.write_text("\n \n")
    assert keys.get().accept("Bearer good")
    path.unlink()
    assert keys.get().accept("Bearer good")
    assert not keys.get().accept("Bearer ")
    path.write_text("next\n")
    assert keys.get().accept("Bearer next")
    assert caplog.messages


def test_a_secret_swapped_by_symlink_is_seen(tmp_path: Path) -> None:
    """Kubernetes replaces a mounted Secret's folder by renaming a symlink; same name, same size, maybe same time."""
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(f"key-{name}\n")
        os.utime(tmp_path / name / "keys", ns=(0, 0))
    (tmp_path / "data").symlink_to("v1")
    keys = ReloadingFile(str(tmp_path / "data" / "keys"), ApiKeys.parse)
    assert keys.get().accept("Bearer key-v1")
    (tmp_path / "next").symlink_to("v2")
    (tmp_path / "next").rename(tmp_path / "data")
    assert keys.get().accept("Bearer key-v2")
