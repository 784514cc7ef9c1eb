"""`benchmarks/gpu/run.py` with parts that need no GPU: no figure is lost, whatever ends a part or the run."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu/run.py"


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_run"] = module
    spec.loader.exec_module(module)
    return module


Session = Callable[..., dict[str, dict[str, object]]]


@pytest.fixture
def session(run: ModuleType, tmp_path: Path) -> Session:
    """Runs parts given as Python code and returns what is on disk afterwards."""

    def start(*argv: str, fails: str | None = None, **code: str) -> dict[str, dict[str, object]]:
        parts = {name: run.Part(("-c", text), 1, 4, f"the {name}") for name, text in code.items()}
        if fails is None:
            run.main([f"--out={tmp_path}", *argv], parts)
        else:
            with pytest.raises(SystemExit, match=fails):
                run.main([f"--out={tmp_path}", *argv], parts)
        return json.loads((tmp_path / "results.json").read_text())  # type: ignore[no-any-return]

    return start


FIGURE = "import json; print(json.dumps({'case': 'step', 'ms': 3}), flush=True)"


def test_a_part_that_fails_stops_no_other_and_keeps_its_figures(session: Session, tmp_path: Path) -> None:
    found = session(one=f"{FIGURE}; print('and then'); 1 / 0", two=FIGURE, fails="failed: one;")
    assert [found[name]["status"] for name in ("one", "two")] == [1, 0]
    assert found["one"]["cases"] == found["two"]["cases"] == [{"case": "step", "ms": 3}]
    markdown = (tmp_path / "results.md").read_text()
    assert "**ended with status 1**" in markdown
    assert "ZeroDivisionError" in markdown
    assert "| step | 3 |" in markdown


def test_what_was_measured_is_left_out_the_next_time(session: Session) -> None:
    session(one=FIGURE, two="1 / 0", fails="failed: two")
    found = session(one="1 / 0", two=FIGURE)
    assert [found[name]["status"] for name in ("one", "two")] == [0, 0]
    session("--again", one="1 / 0", fails="failed: one")


def test_a_part_that_takes_too_long_is_ended_and_its_figures_kept(session: Session) -> None:
    found = session(slow=f"{FIGURE}; import time; time.sleep(60)", fails="failed: slow")
    assert found["slow"]["status"] == 124
    assert found["slow"]["cases"] == [{"case": "step", "ms": 3}]


def test_no_part_begins_that_could_not_end_in_time(
    session: Session, run: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    session(one=FIGURE)
    assert "two" not in session(f"--minutes={(run.GRACE_S + 0.5) / 60}", one=FIGURE, two=FIGURE)
    assert "no time was left for: two" in capsys.readouterr().out


def test_every_part_is_a_script_that_is_there_and_can_end_in_its_time(run: ModuleType) -> None:
    for part in run.PARTS.values():
        assert part.usual < 600 - run.GRACE_S
        assert part.usual < part.most
        assert part.most < 600 or part.resumable
        paths = [arg for arg in part.argv if "/" in arg]
        assert paths
        assert all(Path(path).exists() for path in paths)


def test_a_part_that_keeps_what_it_has_goes_on_when_it_was_cut_off(
    run: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file survives until it has succeeded and is measured again."""
    code = (
        "import sys, time, pathlib; kept = pathlib.Path(sys.argv[1])\n"
        "found = kept.read_text() if kept.exists() else ''; kept.write_text(found + 'x')\n"
        "print('{\"case\": \"' + found + '\"}', flush=True)\n"
        "if not found: time.sleep(60)"
    )
    parts = {"sweep": run.Part(("-c", code, run.KEPT), 1, 2, "a sweep")}

    def cases(*argv: str) -> object:
        run.main([f"--out={tmp_path}", *argv], parts)
        return json.loads((tmp_path / "results.json").read_text())["sweep"]["cases"]

    assert cases() == [{"case": ""}]
    assert "no time was left for: sweep" in capsys.readouterr().out
    assert cases("--again") == [{"case": "x"}]
    assert cases() == [{"case": "x"}]
    assert cases("--again") == [{"case": ""}]
