"""What the documentation says exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from repo.checkout import ROOT, pages, text_of
from tandem_cli.main import COMMANDS
from tandem_contract.metrics import ALL

ENGLISH, CHINESE = text_of(Path("README.md")), text_of(Path("README.zh-CN.md"))
MAKEFILE = text_of(Path("Makefile"))
CODE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PACKAGES = {path.name for path in ROOT.glob("*/tandem_*")}


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", MAKEFILE, re.MULTILINE))


def test_make_help_lists_every_target() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(re.findall(r"^  make ([a-z0-9-]+) +\S", shown.stdout, re.MULTILINE)) == targets()
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == targets()


@pytest.mark.parametrize("page", pages(), ids=str)
def test_make_targets_and_commands_exist(page: Path) -> None:
    code = "\n".join([*(block for _, block in CODE.findall(text_of(page))), *re.findall(r"`([^`\n]+)`", text_of(page))])
    assert set(re.findall(r"^make ([a-z0-9-]+)", code, re.MULTILINE)) <= targets()
    assert set(re.findall(r"^(?:\S*/)?tandem ([a-z]+)", code, re.MULTILINE)) <= set(COMMANDS)


@pytest.mark.parametrize("page", pages(), ids=str)
def test_metric_names_are_the_contracts(page: Path) -> None:
    known = {metric.name for metric in ALL} | PACKAGES
    assert set(re.findall(r"\btandem_[a-z_]+[a-z]", text_of(page))) <= known


@pytest.mark.parametrize("page", pages(), ids=str)
def test_relative_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text_of(page))
    assert not [link for link in links if not (ROOT / page.parent / link).exists()]


@pytest.mark.processes
@pytest.mark.parametrize(
    "line", [line for _, block in CODE.findall(ENGLISH) for line in block.splitlines() if "bin/tandem " in line]
)
def test_flags_shown_in_the_readme_exist(line: str) -> None:
    own, _, engine = line.partition("bin/tandem ")[2].partition(" -- ")
    for command, flags in ((own, own), ("serve", engine)):
        words = [word for word in command.split() if not word.startswith("-")]
        help_of = words[:2] if words[0] == "bench" else words[:1]
        shown = subprocess.run(
            [sys.executable, "-m", "tandem_cli.main", *help_of, "--help"], capture_output=True, text=True, check=True
        ).stdout
        assert set(re.findall(r"--[a-z-]+", flags)) <= set(re.findall(r"--[a-z-]+", shown))


def test_both_readmes_show_the_same() -> None:
    assert CODE.findall(ENGLISH) == CODE.findall(CHINESE)
    for piece in (r"^(#+) ", r"^\|", r"^- ", r"\]\((?!README)([^)]+)\)", r"`(tandem_[a-z_]+)`"):
        assert re.findall(piece, ENGLISH, re.MULTILINE) == re.findall(piece, CHINESE, re.MULTILINE), piece
