"""What the terminal shows of a fleet."""

from io import StringIO
from pathlib import Path

from rich.console import Console
from tandem_runtime.local.view import TerminalView

NAMES = ["gateway", "decode-0"]
LOG_LINE = "2026-11-23 08:14:03,229 INFO    tandem_runtime.server.main [-] loading weights: 50% of 0.3 GiB"


def test_a_terminal_shows_each_program_with_its_progress() -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=90, color_system=None)
    with TerminalView(console, NAMES, echo=False, log_dir=None) as view:
        with view.starting():
            view.state("gateway", "ready")
            view.line("decode-0", LOG_LINE)
        view.state("decode-0", "restarting", "in 0.5 s; it was ended by SIGKILL")
    shown = out.getvalue()
    assert "✓ gateway" in shown
    assert " loading weights: 50% of 0.3 GiB" in shown
    assert "INFO" not in shown
    assert "decode-0 | restarting in 0.5 s; it was ended by SIGKILL\n" in shown


def test_elsewhere_every_line_stands_alone_with_its_name() -> None:
    out = StringIO()
    with TerminalView(Console(file=out, width=40), NAMES, echo=True, log_dir=None) as view:
        with view.starting():
            view.line("decode-0", "[bold]" + "x" * 100)
        view.state("gateway", "stopped")
    assert out.getvalue() == f"decode-0 | [bold]{'x' * 100}\ngateway  | stopped\n"


def test_log_files_hold_this_runs_lines(tmp_path: Path) -> None:
    (tmp_path / "gateway.log").write_text("of the run before\n")
    with TerminalView(Console(file=StringIO()), NAMES, echo=False, log_dir=tmp_path) as view:
        view.line("gateway", "hello")
    assert (tmp_path / "gateway.log").read_text() == "hello\n"
    assert (tmp_path / "decode-0.log").read_text() == ""
