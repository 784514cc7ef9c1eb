"""What the images are made of."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from repo.checkout import text_of
from repo.test_dependencies import EXTRAS, PROJECT
from tandem_cli.main import COMMANDS

DOCKERFILES = {"operator": {"operator", "gateway", "fetch"}, "runtime": {"serve"}}
"""Name to the commands that its pods run."""


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_has_what_its_commands_need_and_traces_and_no_more(name: str) -> None:
    installed = set(re.findall(r"--extra (\w+)", text_of(Path(f"Dockerfile.{name}"))))
    assert installed == {"tracing"} | {COMMANDS[command].extra for command in DOCKERFILES[name]}
    assert installed <= set(EXTRAS)


def test_the_small_image_has_no_torch() -> None:
    names = {wanted.name for command in DOCKERFILES["operator"] for wanted in EXTRAS[COMMANDS[command].extra]}
    assert not {"torch", "triton", "transformers"} & names


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_not_root_and_names_no_registry(name: str) -> None:
    text = text_of(Path(f"Dockerfile.{name}"))
    base = re.search(r"^ARG BASE_IMAGE=(\S+)$", text, re.MULTILINE)
    assert base is not None
    assert "." not in base[1].partition("/")[0].partition(":")[0]
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE) == ["65532:65532"]
    assert "index-url" not in text


def test_the_build_context_holds_what_the_wheel_is_made_of() -> None:
    let_in = [line[1:] for line in text_of(Path(".dockerignore")).splitlines() if line.startswith("!")]
    packages = re.findall(r'"((?:contract|operator|kernels|runtime)/tandem_\w+)"', text_of(Path("pyproject.toml")))
    needed = [*packages, PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "constraints.txt"]
    assert len(packages) >= 7
    assert [path for path in needed if not any(fnmatch(path, f"{entry}*") for entry in let_in)] == []
