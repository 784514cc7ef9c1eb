"""One function per subcommand. Each imports its package only when called: `tandem --help` stays instant,
and the operator image runs its commands without torch installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A command cannot do what was asked; the message is one line: what, where, remedy."""


@contextmanager
def named_errors() -> Iterator[None]:
    """Makes the runtime's own errors, which are one line already, the command's."""
    from tandem_runtime.core.errors import TandemError

    try:
        yield
    except TandemError as error:
        raise UserError(str(error)) from error


def serve(argv: list[str]) -> int | None:
    from tandem_contract.flags import ServeFlags, parse

    flags = parse(ServeFlags, argv, prog="tandem serve")
    from tandem_runtime.server.main import run

    with named_errors():
        return run(flags)


def gateway(argv: list[str]) -> int | None:
    from tandem_contract.flags import GatewayFlags, parse

    flags = parse(GatewayFlags, argv, prog="tandem gateway")
    from tandem_gateway.main import run

    return run(flags)


def fetch(argv: list[str]) -> int | None:
    from tandem_fetch.main import run

    return run(argv)


def up(argv: list[str]) -> int | None:
    from tandem_runtime.local.main import run_up

    with named_errors():
        return run_up(argv)


def demo(argv: list[str]) -> int | None:
    from tandem_runtime.local.main import run_demo

    with named_errors():
        return run_demo(argv)


def bench(argv: list[str]) -> int | None:
    from tandem_runtime.bench.main import run

    return run(argv)


def operator(argv: list[str]) -> int | None:
    from tandem_operator.main import run

    return run(argv)
