"""Entry of `tandem`: finds the subcommand, imports its package and hands over the rest of the command line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tandem_cli.commands as commands

Handler = Callable[[list[str]], "int | None"]


@dataclass(frozen=True, slots=True)
class Command:
    help: str
    extra: str
    """Extra of the distribution that brings the third-party packages the command imports."""
    handler: Handler


COMMANDS: dict[str, Command] = {
    "serve": Command("one engine pod with the OpenAI API", "runtime", commands.serve),
    "gateway": Command("the router in front of prefill and decode pods", "gateway", commands.gateway),
    "fetch": Command("download a model into a folder", "fetch", commands.fetch),
    "up": Command("gateway, prefill and decode processes on this machine", "demo", commands.up),
    "demo": Command("the same with a small model, one question and where it went", "demo", commands.demo),
    "bench": Command("measure an OpenAI endpoint", "bench", commands.bench),
    "operator": Command("turn InferenceServices of a cluster into pods", "operator", commands.operator),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: the command's own; 1 for an error it named, 2 for a bad command line, 130 for Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    if args[0] == "--version":
        print(f"tandem {_version()}")
        return 0
    name, rest = args[0], args[1:]
    command = COMMANDS.get(name)
    if command is None:
        print(f"tandem: no command {name!r}; one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    # Of every Python process from here on: a types.py or http.py in the folder where the user stands is none of ours.
    os.environ["PYTHONSAFEPATH"] = "1"
    if os.getpid() == 1:
        # Of a container: the kernel drops a SIGTERM that its first process does not handle, and a pod deleted while it
        # imports would then serve on, its GPUs held, until it is killed. The command's own handler follows.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    return invoke(name, command, rest)


def invoke(name: str, command: Command, argv: list[str]) -> int:
    try:
        return command.handler(argv) or 0
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("tandem_"):
            raise
        remedy = f"pip install 'tandem-serving[{command.extra}]'"
        print(f"tandem {name}: the package {package} is not installed; {remedy}", file=sys.stderr)
        return 1
    except commands.UserError as error:
        print(f"tandem {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: tandem COMMAND [options]",
            "",
            "Serve Qwen models with prefill and decode on separate pods.",
            "",
            *lines,
            "",
            "tandem COMMAND --help shows a command's options; tandem --version the version.",
        ]
    )


def _version() -> str:
    from importlib.metadata import version

    return version("tandem-serving")


if __name__ == "__main__":
    sys.exit(main())
