"""The flags of `tandem bench serve`, frozen at the door."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from tandem_runtime.bench.serve.slo import Bound, Slo, SloError, parse_slo, parse_slo_table
from tandem_runtime.bench.serve.workload import Workload, parse_workload

T = TypeVar("T")
Endpoint = Literal["completions", "chat"]


class OptionError(ValueError):
    """Flags that cannot go together; the message starts with a flag's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    targets: tuple[tuple[str, str], ...]
    """Names and URLs; the first is the one that is measured, the others are its peers."""
    model: str | None
    api_key: str | None
    endpoint: Endpoint
    tokenizer: str | None
    token_ids: range
    workloads: tuple[Workload, ...]
    shared_prefix_len: int
    num_prompts: int | None
    concurrency: tuple[int, ...]
    request_rate: tuple[float, ...]
    """Requests per second (Poisson); empty: closed loop."""
    repeat: int
    warmup: int
    ignore_eos: bool
    temperature: float
    extra_body: dict[str, Any]
    seed: int | None
    timeout: float
    gpus: int
    slo: Slo
    slo_table: tuple[Bound, ...]
    sweep: bool
    min_concurrency: int
    max_concurrency: int
    csv: Path | None
    json: Path | None
    plot: Path | None
    allow_failures: bool

    def check(self) -> None:
        """Raises `OptionError`."""
        names = [name for name, _ in self.targets]
        if len(set(names)) < len(names):
            raise OptionError("--compare needs a name of its own for every server")
        if self.shared_prefix_len >= min(w.input_len for w in self.workloads):
            raise OptionError("--shared-prefix-len must be below every input length")
        if self.sweep and not self.slo.bounds and not self.slo_table:
            raise OptionError("--sweep needs --slo (or --slo-table)")
        if self.sweep and (self.concurrency or self.request_rate):
            raise OptionError("--sweep chooses the load: leave out --concurrency and --request-rate")
        if self.min_concurrency > self.max_concurrency:
            raise OptionError("--min-concurrency must not exceed --max-concurrency")
        for flag, path in (("--csv", self.csv), ("--json", self.json), ("--plot", self.plot)):
            if path is not None and not path.parent.is_dir():
                raise OptionError(f"{flag}: there is no folder {path.parent}")
        most = max((*self.concurrency, self.max_concurrency if self.sweep else 0))
        if self.num_prompts is not None and self.num_prompts < most:
            limit = "--max-concurrency" if self.sweep else "--concurrency"
            raise OptionError(f"--num-prompts {self.num_prompts} never reaches {limit} {most}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--base-url",
        required=True,
        type=_argument(_url),
        metavar="URL",
        help="server to measure, such as http://127.0.0.1:8000",
    )
    add("--name", default="target", help="name of --base-url in reports (default: %(default)s)")
    add("--compare", action="append", default=[], type=_argument(_named_url), metavar="NAME=URL",
        help="peer measured by the same client with the same prompts, turn about; repeatable")  # fmt: skip
    add("--model", help="model name in requests (default: the first of each server's /v1/models)")
    add("--api-key", help="bearer token (default: $OPENAI_API_KEY)")
    add("--endpoint", choices=("completions", "chat"), default="completions", help="default: %(default)s")
    add("--tokenizer", metavar="DIR|NAME", help="builds text prompts of exact length (default: token ids for "
        "completions, the server's /tokenize for chat)")  # fmt: skip
    add("--token-ids", type=_argument(_id_range), default=range(1000, 30000), metavar="LOW:HIGH",
        help="ids that prompts are drawn from, HIGH excluded (default: 1000:30000)")  # fmt: skip
    add("--workload", action="append", default=[], type=_argument(parse_workload), metavar="INPUT:OUTPUT",
        help="prompt and answer length in tokens; repeatable (default: 128:64)")  # fmt: skip
    add("--input-len", type=_argument(_count), metavar="N", help="with --output-len: one workload")
    add("--output-len", type=_argument(_count), metavar="N")
    add("--shared-prefix-len", type=_argument(_natural), default=0, metavar="N",
        help="leading tokens that all prompts share, to measure prefix caching (default: 0)")  # fmt: skip
    add("--num-prompts", type=_argument(_count), metavar="N", help="requests a level (default: 4 x concurrency)")
    add("--concurrency", action="append", default=[], type=_argument(_list_of(_count)), metavar="N[,N...]",
        help="requests in flight; several make a sweep (default: 8)")  # fmt: skip
    add("--request-rate", action="append", default=[], type=_argument(_list_of(_positive)), metavar="R[,R...]",
        help="Poisson arrivals per second; --concurrency then caps what is in flight, and waiting for the cap "
        "counts as latency")  # fmt: skip
    add("--repeat", type=_argument(_count), default=1, metavar="N", help="measure every level N times")
    add("--warmup", type=_argument(_natural), default=1, metavar="N",
        help="unmeasured requests to each server before each workload (default: %(default)s)")  # fmt: skip
    add("--ignore-eos", action=argparse.BooleanOptionalAction, default=True,
        help="fix the answer's length; an answer of another length is a failure (default: on)")  # fmt: skip
    add("--temperature", type=float, default=0.0, help="default: %(default)s")
    add("--extra-body", type=_argument(_json_object), default={}, metavar="JSON", help="fields added to requests")
    add("--seed", type=int, help="of prompts and arrivals; the same seed against the same server meets its prefix "
        "cache (default: random)")  # fmt: skip
    add("--timeout", type=_argument(_positive), default=600.0, metavar="SECONDS", help="a request may take this long")
    add("--gpus", type=_argument(_count), default=1, metavar="N",
        help="GPUs behind the server, prefill and decode together; divides throughput (default: 1)")  # fmt: skip
    add("--slo", type=_argument(parse_slo), default=Slo(()), metavar="SLO",
        help="such as tpot=40ms,p99-tpot=50ms,ttft=2s; a bare metric bounds its mean")  # fmt: skip
    add("--sweep", action="store_true", help="search the highest throughput inside --slo")
    add("--slo-table", type=_argument(parse_slo_table), default=(), metavar="MS[,MS...]",
        help="search for each TPOT bound, such as 50,40,30 (mean) or p99-tpot=50,40, on top of --slo")  # fmt: skip
    add("--min-concurrency", type=_argument(_count), default=1, metavar="N", help="where --sweep starts")
    add("--max-concurrency", type=_argument(_count), default=256, metavar="N",
        help="where --sweep ends (default: %(default)s)")  # fmt: skip
    add("--csv", type=Path, metavar="FILE", help="one row a level")
    add("--json", type=Path, metavar="FILE", help="everything, with a record for every request")
    add("--plot", type=Path, metavar="FILE.png", help="throughput against TPOT, TTFT against load")
    add("--allow-failures", action="store_true", help="exit with 0 though requests failed")


def from_namespace(given: argparse.Namespace) -> Options:
    """Raises `OptionError`."""
    sweep = given.sweep or bool(given.slo_table)
    concurrency = tuple(n for numbers in given.concurrency for n in numbers)
    rates = tuple(r for numbers in given.request_rate for r in numbers)
    direct = {name: getattr(given, name) for name in Options.__slots__ if hasattr(given, name)}
    options = Options(
        **direct
        | {
            "targets": ((given.name, given.base_url), *given.compare),
            "api_key": given.api_key or os.environ.get("OPENAI_API_KEY"),
            "workloads": _workloads(given),
            "concurrency": concurrency or (() if sweep or rates else (8,)),
            "request_rate": rates,
            "sweep": sweep,
        }
    )
    options.check()
    return options


def _workloads(given: argparse.Namespace) -> tuple[Workload, ...]:
    lengths = (given.input_len, given.output_len)
    if lengths == (None, None):
        return tuple(given.workload) or (Workload(128, 64),)
    if None in lengths:
        raise OptionError("--input-len and --output-len belong together")
    return (*given.workload, Workload(*lengths))


def _argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Lets argparse name the flag in front of the parser's own message."""

    def parse_argument(text: str) -> T:
        try:
            return parse(text)
        except (ValueError, SloError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse_argument


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{text!r} is not a whole number above 0")
    return int(text)


def _natural(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(f"{text!r} is not a number above 0")
    return number


def _list_of(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    return lambda text: [parse(part.strip()) for part in text.split(",")]


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port or an IPv6 address that is none
        usable = False
    if not usable:
        raise ValueError(f"{text!r} is no URL such as http://127.0.0.1:8000")
    return text


def _named_url(text: str) -> tuple[str, str]:
    name, equals, url = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{text!r} is not NAME=URL")
    return name, _url(url)


def _id_range(text: str) -> range:
    low, colon, high = text.partition(":")
    if not colon or not low.isdecimal() or not high.isdecimal() or int(low) >= int(high):
        raise ValueError(f"{text!r} is not LOW:HIGH with LOW below HIGH")
    return range(int(low), int(high))


def _json_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not a JSON object")
    return value
