import re
from pathlib import Path

import pytest
from tandem_cluster import binaries, requirements


@pytest.mark.parametrize("module", [binaries.KUBERNETES, binaries.ADDONS], ids=lambda module: module.folder.name)
def test_go_mod_pins_every_program(module: binaries.Module) -> None:
    """`go build` of a package that no `tool` line holds would lose it at the next `go mod tidy`."""
    text = (module.folder / "go.mod").read_text()
    for package in module.programs.values():
        if package.startswith("."):
            assert (module.folder / package / "main.go").is_file()
        else:
            assert re.search(rf"^(tool )?\t?{re.escape(package)}$", text, re.MULTILINE), package


def test_the_staging_modules_are_of_the_same_release() -> None:
    text = (binaries.KUBERNETES.folder / "go.mod").read_text()
    replaced = set(re.findall(r"^\tk8s\.io/\S+ => k8s\.io/\S+ v0\.(\S+)$", text, re.MULTILINE))
    assert {binaries.kubernetes_version()} == {f"v1.{version}" for version in replaced}


def test_the_cache_is_keyed_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    assert re.fullmatch(r"kubernetes-v1\.34\.\d+-[0-9a-f]{12}", binaries.folder().name)
    assert binaries.folder().is_relative_to(tmp_path)


def test_go_versions_compare_as_numbers() -> None:
    assert requirements.go_version("go1.9.2") < requirements.MINIMUM_GO < requirements.go_version("go1.26.8")
