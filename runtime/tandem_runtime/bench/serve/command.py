"""`tandem bench serve`, from flags to exit status."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from rich.console import Console

from tandem_runtime.bench.serve.client import Client
from tandem_runtime.bench.serve.display import Display
from tandem_runtime.bench.serve.files import write_csv, write_json
from tandem_runtime.bench.serve.options import OptionError, Options, add_arguments, from_namespace
from tandem_runtime.bench.serve.plot import write_plot
from tandem_runtime.bench.serve.report import print_report
from tandem_runtime.bench.serve.results import Findings
from tandem_runtime.bench.serve.session import Session, Target
from tandem_runtime.bench.serve.tokenizers import prompt_source

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_TABLE_WIDTH = 130
"""Columns that the widest table needs; a narrower terminal breaks its lines, a pipe has no width at all."""


def register(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("serve", help="load on any OpenAI endpoint", description=__doc__, allow_abbrev=False)
    add_arguments(parser)

    def execute(namespace: argparse.Namespace) -> int:
        try:
            options = from_namespace(namespace)
        except OptionError as error:
            parser.error(str(error))
        return run(options)

    parser.set_defaults(execute=execute)


def run(options: Options) -> int:
    """Exit status: 1 when requests failed (unless allowed). Raises `BenchError`."""
    findings = Findings(random.SystemRandom().randrange(2**32) if options.seed is None else options.seed)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(measure(options, findings))
    finally:
        if findings.levels:
            report(findings, options)
    return 1 if findings.failed and not options.allow_failures else 0


async def measure(options: Options, findings: Findings) -> None:
    """Fills `findings`. Raises `BenchError`."""
    async with AsyncExitStack() as stack:
        display = stack.enter_context(Display(Console(stderr=True)))
        targets = []
        for name, url in options.targets:
            client = Client(
                url,
                endpoint=options.endpoint,
                api_key=options.api_key,
                timeout=options.timeout,
                on_text=display.on_text,
            )
            await stack.enter_async_context(client)
            targets.append(Target(name, client, options.model or await client.first_model()))
        prompts = await prompt_source(options, targets[0].client, targets[0].model, seed=findings.seed)
        await Session(options, targets, prompts, display, findings).run()


def report(findings: Findings, options: Options) -> None:
    print_report(findings, Console(width=max(Console().width, _TABLE_WIDTH)))
    if options.csv:
        write_csv(findings, options.csv)
    if options.json:
        write_json(findings, options, options.json)
    if options.plot:
        write_plot(findings, options.plot)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
