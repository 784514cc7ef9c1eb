from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_models import EOS_TOKEN_ID, VOCAB_SIZE, save_byte_tokenizer
from tandem_runtime.grammar.compiler import GrammarCompiler
from tandem_runtime.text.vocabulary import Vocabulary, read_vocabulary


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """Of bytes and three special tokens; the last id has no token."""
    folder: Path = tmp_path_factory.mktemp("bytes")
    save_byte_tokenizer(folder)
    return read_vocabulary(folder, VOCAB_SIZE, stand_in=False)


@pytest.fixture(scope="session")
def compiler(vocabulary: Vocabulary) -> GrammarCompiler:
    return compiler_of(vocabulary)


@pytest.fixture(scope="session")
def text_of(vocabulary: Vocabulary) -> Callable[[list[int]], str]:
    """As a client would see it."""
    special = set(vocabulary.special_token_ids)
    return lambda ids: b"".join(vocabulary.tokens[i] for i in ids if i not in special).decode()


def compiler_of(vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(
        vocabulary.tokens,
        special_token_ids=vocabulary.special_token_ids,
        eos_token_ids=(EOS_TOKEN_ID,),
        encode=vocabulary.encode,
    )
