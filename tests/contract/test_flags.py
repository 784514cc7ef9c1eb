"""Flags are an API: what the operator can express, the runtime understands."""

import typing
from dataclasses import fields
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_contract.fetch_flags import FetchFlags
from tandem_contract.flags import FlagError, GatewayFlags, ServeFlags, option_name, parse, to_argv

# Values from the shell or a manifest: no NUL, which no argv can hold.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
NUMBERS = {int: st.integers(1, 2**31), float: st.floats(0.001, 1.0), bool: st.booleans(), str: TEXT}
EVERY_SET = pytest.mark.parametrize("cls", [ServeFlags, GatewayFlags, FetchFlags])


def values(hint: Any) -> st.SearchStrategy[Any]:
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return st.lists(values(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if typing.get_args(hint):
        return st.one_of([st.none() if arg is type(None) else values(arg) for arg in typing.get_args(hint)])
    return NUMBERS[hint]


def flag_sets(cls: type[Any]) -> st.SearchStrategy[Any]:
    """Flag sets whose own `check` accepts them: what it refuses, by name, goes back to its default."""
    hints = typing.get_type_hints(cls)

    required: dict[str, Any] = {"model": "/m"} if cls is ServeFlags else {"decode": ("http://d:1",)}

    def build(chosen: dict[str, Any]) -> Any:
        while True:
            flags = cls(**(required | chosen))
            try:
                flags.check()
            except FlagError as error:
                name = str(error).split()[0].removeprefix("--").replace("-", "_")
                if name not in chosen:
                    return None
                chosen = {key: value for key, value in chosen.items() if key != name}
            else:
                return flags

    drawn = st.fixed_dictionaries({}, optional={f.name: values(hints[f.name]) for f in fields(cls)})
    return drawn.map(build).filter(lambda flags: flags is not None)


@given(flag_sets(ServeFlags))
def test_serve_flags_survive_the_command_line(flags: ServeFlags) -> None:
    assert parse(ServeFlags, to_argv(flags)) == flags


@given(flag_sets(GatewayFlags))
def test_gateway_flags_survive_the_command_line(flags: GatewayFlags) -> None:
    assert parse(GatewayFlags, to_argv(flags)) == flags


def test_defaults_are_left_out() -> None:
    assert to_argv(ServeFlags(model="/m")) == ["--model=/m"]
    assert to_argv(GatewayFlags()) == []


@EVERY_SET
def test_every_flag_explains_itself(cls: type[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(cls, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(option_name(f.name) in shown and f.metadata["help"] for f in fields(cls))


def test_a_repeated_flag_does_not_leak_into_the_next_command_line() -> None:
    assert parse(GatewayFlags, ["--decode=http://a", "--decode=http://b"]).decode == ("http://a", "http://b")
    assert parse(GatewayFlags, ["--decode=http://c"]).decode == ("http://c",)


@pytest.mark.parametrize(
    ("cls", "argv", "flag"),
    [
        (ServeFlags, ["--model=/m", "--role=prefill"], "--ticket-key-file"),
        (ServeFlags, ["--model=/m", "--gpu-memory-utilization=1.5"], "--gpu-memory-utilization"),
        (ServeFlags, ["--model=/m", "--page-size=0"], "--page-size"),
        (ServeFlags, ["--model=/m", "--max-model-len=1"], "--max-model-len"),
        (ServeFlags, ["--model=/m", "--max-num-batched-tokens=63"], "--max-num-seqs"),
        (ServeFlags, ["--model=/m", "--max-num-seqs=2049"], "--max-num-seqs"),
        (ServeFlags, ["--model=/m", "--dtype=int3"], "--dtype"),
        (ServeFlags, ["--model=/m", "--max-num-seq=3"], "--max-num-seq"),
        (ServeFlags, ["--model=/m", "--request-timeout=nan"], "--request-timeout"),
        (ServeFlags, ["--model=/m", "--drain-timeout=-3"], "--drain-timeout"),
        (ServeFlags, ["--model=/m", "--cpu-threads=-2"], "--cpu-threads"),
        (ServeFlags, ["--model=/m", "--speculative-method=eagle"], "--speculative-method"),
        (ServeFlags, ["--model=/m", "--num-speculative-tokens=0"], "--num-speculative-tokens"),
        (ServeFlags, ["--model=/m", "--prompt-lookup-max=1"], "--prompt-lookup-max"),
        (ServeFlags, ["--model=/m", "--prompt-lookup-min=0"], "--prompt-lookup-min"),
        (ServeFlags, ["--model=/m", "--speculative-disable-by-batch-size=0"], "--speculative-disable-by-batch-size"),
        (ServeFlags, ["--model=/m", "--served-model-name="], "--served-model-name"),
        (ServeFlags, [], "--model"),
        (GatewayFlags, ["--decode=foo"], "--decode"),
        (GatewayFlags, ["--decode=ftp://x:1"], "--decode"),
        (GatewayFlags, ["--decode=http://x:1", "--prefill=http://y:1/v1"], "--prefill"),
        (GatewayFlags, ["--decode=http://x:1", "--request-timeout=0"], "--request-timeout"),
        (GatewayFlags, ["--decode=http://x:1", "--status-interval=-1"], "--status-interval"),
        (GatewayFlags, ["--decode=http://x:1", "--connect-timeout=nan"], "--connect-timeout"),
        (GatewayFlags, ["--decode=http://x:1", "--max-resumes=-4"], "--max-resumes"),
        (GatewayFlags, ["--decode=http://x:1", "--cors-origin=foo"], "--cors-origin"),
        (GatewayFlags, ["--kubernetes-service=a/b", "--decode=http://c"], "--kubernetes-service"),
        (GatewayFlags, ["--kubernetes-service=a"], "--kubernetes-service"),
        (FetchFlags, ["--uri=s3://b/p"], "--destination"),
    ],
)
def test_a_bad_command_line_names_the_flag(
    cls: type[Any], argv: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(cls, argv)
    assert ended.value.code == 2
    assert flag in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"port": 9000, "metrics_port": 9000}, "--metrics-port must differ from --port"),
        ({"port": 9000, "handoff_port": 9000}, "--handoff-port must differ from --port"),
        ({"port": 99999}, "--port must be between"),
        ({"metrics_port": -1}, "--metrics-port must be between"),
        ({"kv_data_port": -1}, "--kv-data-port must leave a port"),
        ({"kv_data_port": 65534, "tensor_parallel_size": 4}, "--kv-data-port must leave a port"),
    ],
)
def test_ports_that_cannot_be_listened_on_are_named(ports: dict[str, int], message: str) -> None:
    with pytest.raises(FlagError, match=message):
        ServeFlags(model="m", **ports).check()


def test_any_free_port_may_be_asked_for_twice() -> None:
    ServeFlags(model="m", port=0, metrics_port=0, handoff_port=0).check()
