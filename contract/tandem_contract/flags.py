"""The command-line flags of `tandem serve` and `tandem gateway`: the operator writes them, the pods read them.

A flag set is a frozen dataclass; its field metadata holds the help text. `to_argv` and `parse` are inverse,
so that a value the operator can express is a value the runtime understands (round-trip tested).
"""

from __future__ import annotations

import argparse
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Literal, TypeVar, Union, cast
from urllib.parse import urlsplit

from tandem_contract import ports
from tandem_contract.status import Role

Flags = TypeVar("Flags")


class FlagError(ValueError):
    """A flag has an impossible value; the message starts with the flag's name."""


def flag(default: Any = MISSING, *, help: str, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFlags:
    """`tandem serve`: one engine pod."""

    model: str = flag(help="folder of a Hugging Face model (config.json, tokenizer, *.safetensors)", metavar="DIR")
    served_model_name: tuple[str, ...] = flag((), help="names clients may use; default: the folder's name")
    role: Role = flag(
        "both",
        help="prefill: computes prompts for decode pods; decode: answers clients, asks prefill pods; both: no handoff",
    )
    host: str = flag("0.0.0.0", help="listen address")
    port: int = flag(ports.API, help="OpenAI API port")
    metrics_port: int = flag(ports.METRICS, help="port of /metrics, /livez, /readyz")
    handoff_port: int = flag(ports.HANDOFF, help="handoff control port (internal)")
    kv_data_port: int = flag(
        ports.KV_DATA, help="first KV data port; rank r uses this + r; 0 picks free ports (internal)"
    )
    kv_transport: Literal["tcp", "nixl", "ipc"] = flag(
        "tcp",
        help="how KV pages travel; ipc: decode pods read them in the memory of prefill pods on the same machine that "
        "have it too; nixl: over RDMA (needs the extra `nixl`); else, with either, over tcp",
    )
    advertise_host: str | None = flag(
        None, help="address peers reach this pod at; default: $POD_IP, else the listen address"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = flag(
        "auto", help="weights and activations; auto: the checkpoint's own"
    )
    kv_cache_dtype: Literal["auto", "fp8"] = flag("auto", help="KV cache; auto: as --dtype")
    quantization: Literal["auto", "none", "fp8"] = flag("auto", help="auto: as the checkpoint says")
    load_format: Literal["safetensors", "dummy"] = flag(
        "safetensors", help="dummy: random weights of config.json's shape, to measure speed"
    )
    device: Literal["auto", "cpu", "cuda"] = flag("auto", help="auto: cuda where there is one")
    tensor_parallel_size: int = flag(1, help="ranks that share the model")
    expert_parallel: bool = flag(False, help="ranks share a mixture of experts by whole experts, not by a part of each")
    max_model_len: int | None = flag(None, help="longest prompt + answer in tokens; default: the model's own")
    rope_scaling: str | None = flag(
        None,
        help="for contexts beyond the model's own, at some cost to short prompts: yarn (as far as --max-model-len), "
        "yarn:FACTOR, yarn:FACTOR:ORIGINAL_LENGTH, JSON over the config's own, or none",
    )
    max_num_seqs: int = flag(64, help="most sequences in one step")
    max_num_batched_tokens: int = flag(2048, help="most tokens in one step; longer prompts are computed in chunks")
    max_prefill_tokens_with_decodes: int = flag(
        512,
        help="most prompt tokens in a step that also decodes: how long a step may make running answers wait. A few "
        "hundred keep the arithmetic units busy; prompts alone fill --max-num-batched-tokens",
    )
    max_waiting: int = flag(1024, help="most queued requests; one more is a 503")
    page_size: int = flag(16, help="tokens per KV page")
    kv_cache_memory: str | None = flag(None, help="memory for KV pages, such as 4GiB; default: from what is free")
    gpu_memory_utilization: float = flag(0.9, help="share of the GPU's memory to use")
    cuda_graphs: bool = flag(True, help="decode steps as CUDA graphs, captured at start")
    enable_prefix_caching: bool = flag(True, help="reuse KV pages of equal prompt beginnings")
    speculative_method: Literal["none", "ngram"] = flag(
        "none",
        help="speculative decoding, which changes no answer; ngram: guesses that a text goes on as it did the last "
        "time it read like this, good for answers that repeat parts of their prompt (not for structured output). "
        "Prefill pods have no use for it",
    )
    num_speculative_tokens: int = flag(4, help="most tokens guessed ahead of a sequence in one step")
    prompt_lookup_min: int = flag(2, help="ngram: fewest tokens that must have occurred before")
    prompt_lookup_max: int = flag(4, help="ngram: tokens compared in search of the longest match")
    speculative_disable_by_batch_size: int = flag(8, help="no guesses while more sequences than this run")
    local_prefill_max_tokens: int = flag(
        256, help="decode role: prompts with at most this many uncached tokens are computed locally"
    )
    handoff_lease_seconds: float = flag(
        60.0, help="prefill role: pages of a job whose decode pod fell silent are freed after this"
    )
    request_timeout: float = flag(600.0, help="seconds after which a request is ended")
    drain_timeout: float = flag(30.0, help="seconds in-flight requests may go on after SIGTERM")
    api_key_file: str | None = flag(
        None, help="file with one API key per line; re-read when it changes; default: no keys", metavar="FILE"
    )
    ticket_key_file: str | None = flag(
        None,
        help="file with ticket keys, one per line, the first signs; re-read when it changes",
        metavar="FILE",
    )
    reasoning_parser: Literal["auto", "none", "qwen3"] = flag(
        "auto", help="splits <think> into reasoning_content; auto: where the chat template knows it"
    )
    generation_config: Literal["auto", "none"] = flag(
        "auto", help="sampling of requests that leave it open; auto: as the model's generation_config.json has it"
    )
    chat_template: str | None = flag(None, help="Jinja file instead of the tokenizer's template", metavar="FILE")
    log_format: Literal["text", "json"] = flag("text", help="log lines")
    log_level: Literal["debug", "info", "warning", "error"] = flag("info", help="least severe log line")
    seed: int = flag(0, help="seed of requests that name none")
    cpu_threads: int | None = flag(None, help="threads of the CPU backend; default: all cores")

    def check(self) -> None:
        """Raises `FlagError` for values that are wrong whatever the model is."""
        _at_least_one(
            self, "tensor_parallel_size", "max_num_seqs", "max_num_batched_tokens", "max_waiting", "page_size"
        )
        _distinct_ports(self, "port", "metrics_port", "handoff_port")
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise FlagError(
                f"--max-num-seqs must be at most --max-num-batched-tokens ({self.max_num_batched_tokens}), not "
                f"{self.max_num_seqs}: a step has a token for every running sequence"
            )
        if not 0 <= self.kv_data_port <= 65536 - self.tensor_parallel_size:
            raise FlagError("--kv-data-port must leave a port up to 65535 for each rank, or be 0 for any free ones")
        _at_least_one(self, "num_speculative_tokens", "prompt_lookup_min", "speculative_disable_by_batch_size")
        if self.prompt_lookup_max < self.prompt_lookup_min:
            raise FlagError("--prompt-lookup-max must be at least --prompt-lookup-min")
        _positive(self, "handoff_lease_seconds", "request_timeout")
        _not_negative(self, "drain_timeout", "local_prefill_max_tokens")
        if self.cpu_threads is not None:
            _at_least_one(self, "cpu_threads")
        if not all(name.strip() for name in self.served_model_name):
            raise FlagError("--served-model-name must not be empty")
        if not 0.0 < self.gpu_memory_utilization <= 1.0:
            raise FlagError("--gpu-memory-utilization must be above 0 and at most 1")
        if self.role != "both" and self.ticket_key_file is None:
            raise FlagError(f"--ticket-key-file is required with --role {self.role}: the handoff must be authenticated")
        _at_least_one(self, "max_prefill_tokens_with_decodes")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise FlagError("--max-model-len must be at least 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayFlags:
    """`tandem gateway`: the router in front of prefill and decode pods."""

    host: str = flag("0.0.0.0", help="listen address")
    port: int = flag(ports.API, help="OpenAI API port")
    metrics_port: int = flag(ports.METRICS, help="port of /metrics, /livez, /readyz")
    decode: tuple[str, ...] = flag((), help="API URLs of decode pods (static list)", metavar="URL")
    prefill: tuple[str, ...] = flag((), help="API URLs of prefill pods (static list)", metavar="URL")
    kubernetes_service: str | None = flag(
        None, help="NAMESPACE/NAME of an InferenceService whose pods are watched instead of static lists"
    )
    strategy: Literal["PrefixAware", "LeastLoaded", "RoundRobin"] = flag("PrefixAware", help="how pods are picked")
    api_key_file: str | None = flag(
        None, help="file with one API key per line; re-read when it changes; default: no keys", metavar="FILE"
    )
    ticket_key_file: str | None = flag(
        None,
        help="file with ticket keys, one per line, the first signs; default: decode pods prefill locally",
        metavar="FILE",
    )
    max_body_bytes: int = flag(8 * 1024 * 1024, help="largest request body; above it a 413")
    max_in_flight: int = flag(4096, help="most requests in flight; one more is a 429")
    connect_timeout: float = flag(2.0, help="seconds to connect to a pod")
    request_timeout: float = flag(600.0, help="seconds for a whole answer")
    stall_timeout: float = flag(
        120.0, help="seconds a pod may stay silent inside an answer, or a client take nothing of it"
    )
    max_attempts: int = flag(3, help="pods tried before the first byte is sent")
    max_resumes: int = flag(16, help="times one stream may go on at another decode pod; 0: never")
    resume_timeout: float = flag(
        30.0, help="seconds a broken stream waits for a decode pod to go on at; 0: only where one has room at once"
    )
    max_journal_bytes: int = flag(
        256 * 1024 * 1024,
        help="most memory for what streams need to go on elsewhere; above it the longest ones go on without a net",
    )
    status_interval: float = flag(0.5, help="seconds between status polls of each pod")
    drain_timeout: float = flag(30.0, help="seconds in-flight answers may go on after SIGTERM")
    cors_origin: tuple[str, ...] = flag((), help="origins browsers may call from; default: none")
    ui: bool = flag(True, help="serve a chat page and a live view of the pods at /ui")
    log_format: Literal["text", "json"] = flag("text", help="log lines")
    log_level: Literal["debug", "info", "warning", "error"] = flag("info", help="least severe log line")

    def check(self) -> None:
        """Raises `FlagError` for impossible values."""
        _at_least_one(self, "max_body_bytes", "max_in_flight", "max_attempts", "max_journal_bytes")
        _distinct_ports(self, "port", "metrics_port")
        _positive(self, "connect_timeout", "request_timeout", "stall_timeout", "status_interval")
        _not_negative(self, "drain_timeout", "resume_timeout", "max_resumes")
        for name in ("decode", "prefill"):
            for url in getattr(self, name):
                _origin(name, url)
        for origin in self.cors_origin:
            if origin != "*":
                _origin("cors_origin", origin)
        if self.kubernetes_service is None and not self.decode:
            raise FlagError("--decode is required (or --kubernetes-service)")
        if self.kubernetes_service is not None and (self.decode or self.prefill):
            raise FlagError("--kubernetes-service excludes --decode and --prefill")
        if self.kubernetes_service is not None and self.kubernetes_service.count("/") != 1:
            raise FlagError("--kubernetes-service must be NAMESPACE/NAME")


def option_name(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def to_argv(flags: object) -> list[str]:
    """The shortest argv that `parse` turns back into `flags`; defaults are left out."""
    argv: list[str] = []
    for f in fields(flags):  # type: ignore[arg-type]
        value = getattr(flags, f.name)
        if value == f.default:
            continue
        if isinstance(value, bool):
            argv.append(option_name(f.name) if value else "--no-" + option_name(f.name)[2:])
        elif isinstance(value, tuple):
            argv += [f"{option_name(f.name)}={item}" for item in value]
        else:
            argv.append(f"{option_name(f.name)}={value}")
    return argv


def add_arguments(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    hints = typing.get_type_hints(cls)
    for f in fields(cls):
        parser.add_argument(option_name(f.name), **_argument(f, hints[f.name]))


def from_namespace(cls: type[Flags], namespace: argparse.Namespace) -> Flags:
    """Builds and checks the flag set; raises `FlagError`."""
    values = {}
    for f in fields(cls):  # type: ignore[arg-type]
        value = getattr(namespace, f.name)
        values[f.name] = tuple(value) if isinstance(value, list) else value
    flags = cls(**values)
    flags.check()  # type: ignore[attr-defined]
    return flags


def parse(cls: type[Flags], argv: Sequence[str], *, prog: str = "tandem") -> Flags:
    """Parses and checks; exits with argparse's usage message and status 2 on a bad flag."""
    parser = argparse.ArgumentParser(prog=prog, description=cls.__doc__, allow_abbrev=False)
    add_arguments(parser, cls)
    try:
        return from_namespace(cls, parser.parse_args(list(argv)))
    except FlagError as error:
        parser.error(str(error))


def _argument(f: Field[Any], hint: Any) -> dict[str, Any]:
    hint = _without_none(hint)
    text = f.metadata["help"].replace("%", "%%")
    if f.default not in (MISSING, None, ()) and not isinstance(f.default, bool):
        text += f" (default: {f.default})"
    spec: dict[str, Any] = {"dest": f.name, "help": text}
    if f.default is MISSING:
        spec["required"] = True
    else:
        spec["default"] = f.default
    if hint is bool:
        return spec | {"action": argparse.BooleanOptionalAction}
    spec["metavar"] = f.metadata["metavar"]
    if typing.get_origin(hint) is tuple:
        return spec | {"action": _Append, "type": typing.get_args(hint)[0]}
    if typing.get_origin(hint) is Literal:
        return spec | {"choices": typing.get_args(hint)}
    return spec | {"type": cast("type[Any]", hint)}


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


class _Append(argparse.Action):
    """Repeatable flag; unlike argparse's own `append` it never touches the shared default."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest), values))


def _distinct_ports(flags: object, *names: str) -> None:
    """0 stands for any free port, as often as it is asked for."""
    taken: dict[int, str] = {}
    for name in names:
        port = getattr(flags, name)
        if not 0 <= port <= 65535:
            raise FlagError(f"{option_name(name)} must be between 0 and 65535")
        if port in taken:
            raise FlagError(f"{option_name(name)} must differ from {option_name(taken[port])}")
        if port:
            taken[port] = name


def _positive(flags: object, *names: str) -> None:
    for name in names:
        value = getattr(flags, name)
        if not (math.isfinite(value) and value > 0):
            raise FlagError(f"{option_name(name)} must be a number of seconds above 0")


def _not_negative(flags: object, *names: str) -> None:
    for name in names:
        value = getattr(flags, name)
        if not (math.isfinite(value) and value >= 0):
            raise FlagError(f"{option_name(name)} must not be negative")


def _origin(name: str, url: str) -> None:
    """Scheme, host and port, as pods' addresses and browsers' origins are written."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise FlagError(f"{option_name(name)} {url!r} must be like http://HOST:PORT")


def _at_least_one(flags: object, *names: str) -> None:
    for name in names:
        if getattr(flags, name) < 1:
            raise FlagError(f"{option_name(name)} must be at least 1")
