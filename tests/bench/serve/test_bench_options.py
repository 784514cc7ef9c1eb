"""A bad flag ends with status 2 and a message that starts with the flag's name."""

from __future__ import annotations

import pytest
from tandem_runtime.bench.main import run


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--slo=tpot=40"], "argument --slo: 'tpot=40' is not like"),
        (["--slo-table=fast"], "argument --slo-table: "),
        (["--workload=12"], "argument --workload: '12' is not INPUT:OUTPUT"),
        (["--concurrency=4,x"], "argument --concurrency: 'x' is not a whole number above 0"),
        (["--request-rate=0"], "argument --request-rate: '0' is not a number above 0"),
        (
            ["--base-url=127.0.0.1:8000"],
            "argument --base-url: '127.0.0.1:8000' is no URL such as http://127.0.0.1:8000",
        ),
        (["--base-url=http://host:port"], "argument --base-url: 'http://host:port' is no URL"),
        (["--compare=a=ftp://x"], "argument --compare: 'ftp://x' is no URL"),
        (["--compare=vllm"], "argument --compare: 'vllm' is not NAME=URL"),
        (["--compare=a=http://x", "--compare=a=http://y"], "--compare needs a name of its own"),
        (["--token-ids=9:3"], "argument --token-ids: '9:3' is not LOW:HIGH"),
        (["--extra-body=[]"], "argument --extra-body: '[]' is not a JSON object"),
        (["--input-len=5"], "--input-len and --output-len belong together"),
        (["--shared-prefix-len=128"], "--shared-prefix-len must be below"),
        (["--sweep"], "--sweep needs --slo"),
        (["--sweep", "--slo=tpot=1s", "--concurrency=4"], "--sweep chooses the load"),
        (["--sweep", "--slo=tpot=1s", "--min-concurrency=300"], "--min-concurrency must not exceed"),
        (["--concurrency=16", "--num-prompts=8"], "--num-prompts 8 never reaches --concurrency 16"),
        (["--sweep", "--slo=tpot=1s", "--num-prompts=8"], "--num-prompts 8 never reaches --max-concurrency 256"),
        (["--csv=/no/such/folder/out.csv"], "--csv: there is no folder /no/such/folder"),
        (["--gpus=0"], "argument --gpus: '0' is not a whole number above 0"),
    ],
)
def test_bad_flags_are_named(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(["serve", "--base-url=http://127.0.0.1:9", *argv])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_help_of_the_command_and_of_the_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["serve", "--help"]):
        with pytest.raises(SystemExit) as exit_:
            run(argv)
        assert exit_.value.code == 0
    assert "--slo-table" in capsys.readouterr().out
