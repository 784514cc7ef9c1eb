"""`tandem up` and `tandem demo`: reads the command line, prepares model and plan, runs the fleet."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from tandem_contract import ports
from tandem_contract.flags import FlagError, ServeFlags, parse

from tandem_runtime.core.errors import StartupError
from tandem_runtime.core.host_memory import free_host_bytes
from tandem_runtime.engine.private_folder import PrivateFolder
from tandem_runtime.local import ask, models
from tandem_runtime.local.cache import cache_root
from tandem_runtime.local.fleet import run_fleet
from tandem_runtime.local.joined import pods_joined
from tandem_runtime.local.plan import (
    POD_HOST,
    FleetOptions,
    Machine,
    check_engine_argv,
    check_memory,
    check_options,
    engine_defaults,
    plan_fleet,
    ports_needed,
    reachable,
)
from tandem_runtime.local.ports import free_ports, require_free
from tandem_runtime.local.view import TerminalView
from tandem_runtime.text.template import check_template
from tandem_runtime.transfer.ipc.host import can_share

LAUNCHER = (sys.executable, "-m", "tandem_cli.main")
# Each token of its first sentence leads by a logit or more: rounding does not change the answer.
QUESTION = "What is the capital of France, and what is it known for? Answer in two sentences."
KILL_AFTER_DRAIN_S = 5.0


def run_up(argv: Sequence[str], *, launcher: tuple[str, ...] = LAUNCHER) -> int:
    """Exit status; raises `TandemError`."""
    parser = _parser("tandem up", "Gateway, prefill and decode processes on this machine, until Ctrl-C.")
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="also write each process's lines to NAME.log there")
    args, engine_argv = _parse(parser, argv)
    options = _options(parser, args, engine_argv, launcher)

    async def greet() -> None:
        print(_addresses(options), flush=True)

    return _run(options, launcher, on_ready=greet, log_dir=args.log_dir, echo=True, serve=True)


def run_demo(argv: Sequence[str], *, launcher: tuple[str, ...] = LAUNCHER) -> int:
    """Exit status; raises `TandemError`."""
    parser = _parser("tandem demo", "One prefill and one decode process, one question and where it went, until Ctrl-C.")
    parser.add_argument("--question", default=QUESTION, help="what to ask")
    parser.add_argument("--once", action="store_true", help="end after the answer instead of serving on")
    args, engine_argv = _parse(parser, argv)
    # Every prompt is worth a handoff here: showing it is the point.
    options = _options(parser, args, ["--local-prefill-max-tokens=0", *engine_argv], launcher)
    log_dir = cache_root(os.environ) / "logs" / f"demo-{options.port}"

    async def show() -> None:
        print(f"\nQ: {args.question}\nA: ", end="", flush=True)
        answer = await ask.ask(_url(options), args.question, lambda text: print(text, end="", flush=True))
        print("\n")
        Console().print(ask.where_it_went(answer))
        print(_addresses(options), flush=True)
        if not args.once:
            print(f"Logs: {log_dir}. Ctrl-C ends it.", flush=True)

    return _run(options, launcher, on_ready=show, log_dir=log_dir, echo=False, serve=not args.once)


def _parser(prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        epilog="Flags of `tandem serve` for all pods go after --.",
    )
    parser.add_argument(
        "--model", default=models.DEMO, help="a model folder, ORG/NAME of a hub, or 'demo' (default: %(default)s)"
    )
    parser.add_argument("--prefill", type=int, default=1, metavar="N", help="prefill pods (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=1, metavar="N", help="decode pods (default: %(default)s)")
    parser.add_argument("--host", default=POD_HOST, help="the gateway's listen address (default: %(default)s)")
    parser.add_argument("--port", type=int, default=ports.API, help="the gateway's API port (default: %(default)s)")
    parser.add_argument(
        "--metrics-port", type=int, default=ports.METRICS, help="the gateway's metrics port (default: %(default)s)"
    )
    return parser


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    own, separator, engine = list(argv), "--", list[str]()
    if separator in own:
        cut = own.index(separator)
        own, engine = own[:cut], own[cut + 1 :]
    return parser.parse_args(own), engine


def _options(
    parser: argparse.ArgumentParser, args: argparse.Namespace, engine_argv: list[str], launcher: tuple[str, ...]
) -> FleetOptions:
    """Cheap checks first: nothing is fetched for a command line that cannot work."""
    try:
        check_engine_argv(engine_argv)
    except FlagError as error:
        parser.error(str(error))
    given = [f"--model={args.model}", *engine_defaults(_machine()), *engine_argv]
    engine = parse(ServeFlags, given, prog=f"{parser.prog} --")
    options = FleetOptions(
        engine=engine,
        prefill=args.prefill,
        decode=args.decode,
        host=args.host,
        port=args.port,
        metrics_port=args.metrics_port,
    )
    try:
        check_options(options)
    except FlagError as error:
        parser.error(str(error))
    if engine.chat_template is not None:
        check_template(engine.chat_template)
    require_free(args.host, args.port, "--port")
    require_free(args.host, args.metrics_port, "--metrics-port")
    folder = models.resolve_model(args.model, cache_root(os.environ), launcher=launcher)
    names = engine.served_model_name
    if not names and models.HUB_ID.fullmatch(args.model) and not Path(args.model).exists():
        names = (args.model,)
    return replace(options, engine=replace(engine, model=str(folder), served_model_name=names))


def _run(
    options: FleetOptions,
    launcher: tuple[str, ...],
    *,
    on_ready: Callable[[], Awaitable[None]],
    log_dir: Path | None,
    echo: bool,
    serve: bool,
) -> int:
    async def joined() -> None:
        metrics_url = f"http://{reachable(options.host)}:{options.metrics_port}/metrics"
        await pods_joined(metrics_url, prefill=options.prefill)
        await on_ready()

    machine = _machine()
    weight_bytes = models.weight_bytes(Path(options.engine.model))
    check_memory(options, machine, weight_bytes)
    pod_ports = free_ports(POD_HOST, ports_needed(options), avoid=(options.port, options.metrics_port))
    if log_dir is not None:
        _make(log_dir)
    # The key lets its holder use the prefill pods.
    with PrivateFolder() as private:
        key_file = private / "ticket-keys"
        key_file.write_text(secrets.token_hex(32) + "\n")
        programs = plan_fleet(
            options,
            machine,
            weight_bytes=weight_bytes,
            ports=pod_ports,
            ticket_key_file=key_file,
            launcher=launcher,
        )
        names = [program.name for program in programs]
        with TerminalView(Console(stderr=True), names, echo=echo, log_dir=log_dir) as view:
            drain_s = options.engine.drain_timeout + KILL_AFTER_DRAIN_S
            return asyncio.run(run_fleet(programs, view, drain_s=drain_s, on_ready=joined, serve=serve))


def _machine() -> Machine:
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        free_memory=free_host_bytes(),
        has_gpu=Path("/dev/nvidiactl").exists(),
        shares_memory=can_share(),
    )


def _make(log_dir: Path) -> None:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(f"cannot keep logs in {log_dir}: {error.strerror or error}") from error


def _url(options: FleetOptions) -> str:
    return f"http://{reachable(options.host)}:{options.port}"


def _addresses(options: FleetOptions) -> str:
    url = _url(options)
    return (
        f"\nAPI:     {url}/v1\n"
        f"Page:    {url}/ui\n"
        f"Metrics: http://{reachable(options.host)}:{options.metrics_port}/metrics\n"
        f"Try:     curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f'           -d \'{{"model": "{_served_name(options.engine)}", "stream": true, '
        '"messages": [{"role": "user", "content": "Hello"}]}\'\n'
    )


def _served_name(engine: ServeFlags) -> str:
    return engine.served_model_name[0] if engine.served_model_name else Path(engine.model).name
