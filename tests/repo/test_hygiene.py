"""What must not be in the repository."""

import re

import pytest
from repo.checkout import text_of, tracked

# Written so that they do not match themselves.
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(work|root)/\w")
REGISTRY = re.compile(r"\b(pypi|pythonhosted|npmjs|npmmirror|crates|proxy\.golang|sum\.golang|maven)\.(org|com|io)\b")
LOCK_FILES = {
    "uv.lock",
    "poetry.lock",
    "Pipfile.lock",
    "package-lock.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "Cargo.lock",
}
BIG = 512 * 1024


@pytest.mark.parametrize(
    ("pattern", "what"), [(MACHINE_PATH, "a path of one machine"), (REGISTRY, "a package registry's address")]
)
def test_no_file_names(pattern: re.Pattern[str], what: str) -> None:
    found = [f"{path}: {match[0]}" for path in tracked() if (match := pattern.search(text_of(path)))]
    assert not found, f"{what} is in {found}"


def test_no_lock_file_with_download_addresses_is_tracked() -> None:
    assert not [path for path in tracked() if path.name in LOCK_FILES]


def test_no_large_file_is_tracked() -> None:
    assert not [path for path in tracked() if len(text_of(path)) > BIG]


def test_no_package_shadows_the_standard_library() -> None:
    """`operator/` on the path must stay a plain folder: with an `__init__.py`, `import operator` would find it."""
    assert not [path for path in tracked() if path.name == "__init__.py" and len(path.parts) == 2]


def test_test_files_have_unique_names_and_no_packages() -> None:
    tests = [path for path in tracked() if path.parts[0] == "tests"]
    names = [path.name for path in tests if path.name.startswith("test_")]
    assert not {name for name in names if names.count(name) > 1}
    assert not [path for path in tests if path.name == "__init__.py"]
