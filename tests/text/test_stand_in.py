from __future__ import annotations

from pathlib import Path

import pytest
from tandem_runtime.core.errors import StartupError
from tandem_runtime.text.tokenizer import Tokenizer


def folder_with(tmp_path: Path, config: str) -> str:
    (tmp_path / "config.json").write_text(config)
    return str(tmp_path)


def test_every_id_of_the_vocabulary_has_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(folder_with(tmp_path, '{"vocab_size": 1000}'), stand_in=True)
    assert all(tokenizer.token_bytes[token_id] for token_id in range(1000))
    assert tokenizer.decode(tokenizer.encode("Grüße, 世界\n", add_special_tokens=True)) == "Grüße, 世界\n"
    assert tokenizer.decode([999]) == " 999"


@pytest.mark.parametrize("config", ["{}", "[]", "nonsense", '{"vocab_size": "many"}'])
def test_without_a_vocabulary_size_it_says_so(tmp_path: Path, config: str) -> None:
    with pytest.raises(StartupError, match=r"vocab_size.*tokenizer\.json"):
        Tokenizer(folder_with(tmp_path, config), stand_in=True)


def test_only_dummy_weights_do_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="there is no tokenizer"):
        Tokenizer(folder_with(tmp_path, '{"vocab_size": 1000}'))
