"""Whether spans are wanted: OpenTelemetry's own environment variables say so, as they do for any program.

https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. Such variables are often set for
everything in a cluster, so what is wrong with them is one line in the log and never a reason not to serve.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from tandem_tracing.spans import OFF, Tracing

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_PROTOCOL = "http/protobuf"


class _Unusable(Exception):
    """The message says why, and what to do."""


def start(service: str, instance: str, environ: Mapping[str, str]) -> Tracing:
    """`OFF` unless the environment asks for traces. `service` and `instance` name this process where it does not."""
    if not _wanted(environ):
        return OFF
    try:
        tracing = _start(service, instance, environ)
    except _Unusable as reason:
        logger.warning("traces are not sent: %s", reason)
        return OFF
    logger.info("traces are sent, by default as service %s", service)
    return tracing


def _wanted(environ: Mapping[str, str]) -> bool:
    """An endpoint, or an exporter by name; as the specification has it, an empty value is as none."""
    exporter = environ.get(_EXPORTER, "")
    asked = exporter not in ("", "none") or any(environ.get(name) for name in _ENDPOINTS)
    disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return asked and exporter != "none" and not disabled


def _start(service: str, instance: str, environ: Mapping[str, str]) -> Tracing:
    """Raises `_Unusable`."""
    exporter = environ.get(_EXPORTER) or "otlp"
    if exporter != "otlp":
        raise _Unusable(f"{_EXPORTER} is {exporter!r}; only otlp and none are known")
    name, protocol = next(((name, environ[name]) for name in _PROTOCOLS if environ.get(name)), ("", _PROTOCOL))
    if protocol != _PROTOCOL:
        raise _Unusable(f"{name} is {protocol!r}; only {_PROTOCOL} is spoken, to port 4318 of a usual collector")
    try:
        from tandem_tracing.otel import OtelTracing, otlp_exporter
    except ModuleNotFoundError as error:
        raise _Unusable(f"the package {error.name} is not installed; pip install 'tandem-serving[tracing]'") from error
    try:
        return OtelTracing(otlp_exporter(), service=service, instance=instance)
    except Exception as error:  # whatever a variable's value brings about in the SDK
        raise _Unusable(f"OpenTelemetry refuses its OTEL_ variables: {type(error).__name__}: {error}") from error
