"""Entry of `tandem fetch`, the init container that brings a model to its node."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem_contract.fetch_flags import EXIT_OK, FetchFlags
from tandem_contract.flags import parse

from tandem_fetch import disk, logs
from tandem_fetch.errors import FetchError, disk_problem
from tandem_fetch.fetch import Fetch, scheme_of
from tandem_fetch.telemetry import Telemetry

log = logging.getLogger(__name__)

EXIT_INTERRUPTED = 130


def run(argv: list[str], *, free_bytes: Callable[[Path], int] = disk.free_bytes) -> int:
    """Exit code: 0, or `fetch_flags.EXIT_RETRYABLE` or `EXIT_PERMANENT`; a bad flag exits with 2 at once.

    For people, `tandem fetch URI [DESTINATION]` is short for the flags of these names.
    """
    flags = parse(FetchFlags, _with_names(argv), prog="tandem fetch")
    logs.configure(flags.log_format, flags.log_level)
    try:
        with _sigterm_interrupts():
            return _fetch(flags, free_bytes)
    except OSError as error:
        return _fail(disk_problem(error), flags)
    except FetchError as error:
        return _fail(error, flags)
    except KeyboardInterrupt:
        log.warning("interrupted; what was fetched is kept")
        return EXIT_INTERRUPTED


def _fetch(flags: FetchFlags, free_bytes: Callable[[Path], int]) -> int:
    telemetry = Telemetry(scheme_of(flags.uri))
    with telemetry.served(flags.metrics_port):
        Fetch(flags, env=os.environ, telemetry=telemetry, free_bytes=free_bytes).run()
    return EXIT_OK


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """The kernel drops an unhandled SIGTERM for process 1, which an init container is: it would wait to be killed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_names(argv: list[str]) -> list[str]:
    named = []
    for name, value in zip(("--uri", "--destination"), argv[:2], strict=False):
        if value.startswith("-"):
            break
        named.append(f"{name}={value}")
    return named + argv[len(named) :]


def _fail(error: FetchError, flags: FetchFlags) -> int:
    kind = "may succeed later" if error.retryable else "needs a change"
    line = f"download failed ({error.reason}, {kind}): {error}"
    log.error("%s", line)
    if flags.termination_log is not None:
        try:
            Path(flags.termination_log).write_text(line + "\n", encoding="utf-8")
        except OSError as failed:
            log.warning("cannot write %s: %s", flags.termination_log, failed.strerror)
    return error.exit_code
