"""A server's sweep on a GPU: its floors, its edges, and that a level is measured once."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tandem_runtime.bench.roofline import CEILINGS, Shape, decode_step, prefill
from tandem_runtime.bench.serve.workload import Workload

QWEN3_32B = Shape(layers=64, hidden=5120, heads=64, kv_heads=8, head_dim=128, inner=25600, vocab=151936)
H200 = CEILINGS["H200"]


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks/gpu"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("sweep", monkeypatch)


@pytest.fixture
def floors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("floors", monkeypatch)


class Server:
    """TPOT and throughput of a server that grows slower by half a millisecond a request."""

    def __init__(self) -> None:
        self.measured: list[int] = []

    def level(self, concurrency: int) -> dict[str, float]:
        self.measured.append(concurrency)
        tpot = 15 + concurrency / 2
        return {"concurrency": concurrency, "mean_tpot_ms": tpot, "output_tok_per_s": concurrency / tpot, "failed": 0}


def test_each_bounds_edge_is_found_to_a_tenth(sweep: ModuleType) -> None:
    found = list(sweep.edges([20, 40, 30], Server().level, start=8, maximum=64))
    assert [row["TPOT below ms"] for row in found] == [40, 30, 20]
    for row, edge in zip(found, (50, 30, 10), strict=True):
        assert 0.9 * edge - 1 <= row["concurrency"] < edge
        assert "note" not in row


def test_a_bound_that_nothing_meets_and_one_that_all_meet(sweep: ModuleType) -> None:
    tight, loose = (next(sweep.edges([bound], Server().level, start=8, maximum=16)) for bound in (10, 99))
    assert tight == {"TPOT below ms": 10, "note": "no level"}
    assert (loose["concurrency"], loose["note"]) == (16, "the most that was tried")


@pytest.mark.parametrize(("pages", "requests"), [(2176, 6), (313 * 64, 64), (313, 1), (320, 1)])
def test_no_more_requests_are_sent_than_have_room(sweep: ModuleType, pages: int, requests: int) -> None:
    """2176 pages are left of 80 GB beside Qwen3-32B in bf16: beyond six requests preemption would be measured."""
    assert sweep.fitting(Workload(3500, 1500), pages, 16) == requests


def test_a_level_with_a_failed_request_is_outside(sweep: ModuleType) -> None:
    server = Server()
    found = next(sweep.edges([40], lambda n: server.level(n) | {"failed": int(n > 8)}, start=8, maximum=16))
    assert found["concurrency"] == 8


def test_a_sweep_that_was_cut_off_measures_only_what_is_missing(sweep: ModuleType, tmp_path: Path) -> None:
    whole, first, second = Server(), Server(), Server()
    path = tmp_path / "levels.json"
    expected = list(sweep.edges([40, 20], whole.level, start=8, maximum=64))

    def cut_off(concurrency: int) -> dict[str, float]:
        if len(first.measured) == 3:
            raise KeyboardInterrupt
        return first.level(concurrency)

    def run(server_level: object) -> list[dict[str, float]]:
        kept = sweep.Kept(path)
        return list(sweep.edges([40, 20], lambda n: kept.level(f"x{n}", lambda: server_level(n)), start=8, maximum=64))  # type: ignore[operator]

    with pytest.raises(KeyboardInterrupt):
        run(cut_off)
    assert run(second.level) == expected
    assert sorted(first.measured + second.measured) == sorted(set(whole.measured))


def test_a_servers_floor_is_its_prompts_and_steps(floors: ModuleType) -> None:
    found = floors.server_floor(QWEN3_32B, Workload(3500, 1500), 32, H200)
    prompt = prefill(QWEN3_32B, 3500).floor_seconds(H200)
    step = decode_step(QWEN3_32B, [4250] * 32).floor_seconds(H200)
    assert found.tpot == step == pytest.approx(23.2e-3, rel=5e-3)
    assert found.ttft == pytest.approx(16.5 * prompt)
    assert found.output_tokens_per_s == pytest.approx(32 * 1500 / (32 * prompt + 1499 * step))


def test_a_card_without_ceilings_is_named(floors: ModuleType) -> None:
    assert floors.ceilings_of("NVIDIA H200") == H200
    with pytest.raises(ValueError, match="no ceilings of NVIDIA L4"):
        floors.ceilings_of("NVIDIA L4")
