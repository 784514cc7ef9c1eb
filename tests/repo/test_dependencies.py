"""`pyproject.toml` and `constraints.txt` agree, for every Python the project supports."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from repo.checkout import text_of

PROJECT = tomllib.loads(text_of(Path("pyproject.toml")))["project"]
EXTRAS = {
    extra: [wanted for text in texts if (wanted := Requirement(text)).name != PROJECT["name"]]
    for extra, texts in PROJECT["optional-dependencies"].items()
}
PINS = [
    Requirement(line) for line in text_of(Path("constraints.txt")).splitlines() if line and not line.startswith("#")
]


def pinned(python: str) -> dict[str, str]:
    """Version by package on Linux x86-64 with this Python."""
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    chosen = [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(dict(machine))]
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in chosen}


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_every_dependency_is_pinned_inside_its_range(python: str) -> None:
    pins = pinned(python)
    for wanted in {str(one): one for extra in EXTRAS.values() for one in extra}.values():
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


def test_constraints_are_exact_and_name_no_index() -> None:
    assert all([spec.operator for spec in pin.specifier] == ["=="] for pin in PINS)
    assert "--" not in text_of(Path("constraints.txt"))


def test_the_operators_image_needs_no_torch() -> None:
    for extra in ("operator", "gateway", "fetch"):
        assert not {"torch", "triton", "transformers"} & {wanted.name for wanted in EXTRAS[extra]}


def test_extras_carry_what_their_packages_stand_on() -> None:
    operator = {wanted.name for wanted in EXTRAS["operator"]}
    assert {"kopf", "aiohttp"} <= operator
    assert "kubernetes" not in operator, "docs/adr/0010"
    assert {"aiohttp", "prometheus-client"} <= {wanted.name for wanted in EXTRAS["gateway"]}
    assert {"boto3"} <= {wanted.name for wanted in EXTRAS["fetch"]}
    assert {"torch", "triton", "transformers", "aiohttp"} <= {wanted.name for wanted in EXTRAS["runtime"]}
