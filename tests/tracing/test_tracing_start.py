"""Whether traces are sent is told by the environment; what is wrong with it is one line in the log."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tandem_tracing.spans import OFF
from tandem_tracing.start import start

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


def tandem_start(**environ: str) -> object:
    return start("tandem-decode", "d-0", environ)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SERVICE_NAME": "mine"},
        ENDPOINT | {"OTEL_SDK_DISABLED": "true"},
        ENDPOINT | {"OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_off_unless_asked_for(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert tandem_start(**environ) is OFF
    assert caplog.records == []


@pytest.mark.parametrize(
    "environ",
    [
        ENDPOINT,
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp"},
        ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"},
    ],
)
async def test_on_where_asked_for(environ: dict[str, str]) -> None:
    tracing = tandem_start(**environ)
    assert tracing is not OFF
    await tracing.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("environ", "reason"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin'; only otlp and none"),
        (ENDPOINT | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'; only http/pro"),
    ],
)
def test_what_cannot_be_is_one_line_and_no_reason_not_to_serve(
    environ: dict[str, str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert tandem_start(**environ) is OFF
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"traces are not sent: {reason}")


def python(code: str) -> list[str]:
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return answer.stdout.splitlines()


def test_without_the_extra_it_is_one_line_too() -> None:
    """Packages that are missing are told from packages that are there in a process of their own."""
    code = f"""
import importlib.abc, logging, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from tandem_tracing.spans import OFF
from tandem_tracing.start import start
print(start("tandem-decode", "d-0", {ENDPOINT!r}) is OFF)
"""
    line, off = python(code)
    assert line.startswith("traces are not sent: the package opentelemetry is not installed; pip install ")
    assert "tandem-serving[tracing]" in line
    assert off == "True"


def test_nothing_is_imported_when_off() -> None:
    code = """
import sys
import tandem_gateway.main, tandem_runtime.server.main
from tandem_tracing.start import start
start("tandem-decode", "d-0", {})
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "google", "requests")))
"""
    assert python(code) == ["[]"]
