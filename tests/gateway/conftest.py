from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Flags of a gateway that asks `LiveEngine`s for live streams."""
    (tmp_path / "ticket-keys").write_text("k" * 32 + "\n")
    return {"ticket_key_file": str(tmp_path / "ticket-keys")}
