from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.step_driver import load_runner, tiny_execution_config
from support.tiny_models import build_tiny_model, edit_config
from tandem_kernels.native import has_packed_linear
from tandem_runtime.core.errors import StartupError
from tandem_runtime.execution.runner import ModelRunner
from tandem_runtime.execution.weights import CheckpointSource, DummySource, Part

NAME = "model.layers.1.mlp.down_proj.weight"


def source(folder: Path, dtype: torch.dtype = torch.float32) -> CheckpointSource:
    return CheckpointSource(folder, dtype=dtype, device="cpu", progress=lambda done, total: None, ignore=frozenset())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_tiny_model(tmp_path, "qwen3")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_are_assembled_below_one_another(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = torch.randn(10, 6), torch.randn(8, 6)
    save_file({"a": a, "b": b}, tmp_path / "x.safetensors")
    taken = source(tmp_path, dtype).take([Part("a", (10, 6), rows=range(5, 10)), Part("b", (8, 6), rows=range(4))])
    assert torch.equal(taken, torch.cat((a[5:], b[:4])).to(dtype))


def test_columns_are_taken_block_by_block(tmp_path: Path) -> None:
    class SmallBlocks(CheckpointSource):
        STAGING_BYTES = 100

    a = torch.randn(11, 6)
    save_file({"a": a}, tmp_path / "x.safetensors")
    reader = SmallBlocks(
        tmp_path, dtype=torch.float16, device="cpu", progress=lambda done, total: None, ignore=frozenset()
    )
    taken = reader.take([Part("a", (11, 6), rows=range(1, 10), cols=range(3, 6))])
    assert torch.equal(taken, a[1:10, 3:].half())


def test_sharded_and_whole_checkpoints_are_the_same(tmp_path: Path) -> None:
    whole = build_tiny_model(tmp_path / "whole", "qwen2")
    sharded = build_tiny_model(tmp_path / "sharded", "qwen2", max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    part = Part(NAME, (48, 72))
    assert torch.equal(source(whole).take([part]), source(sharded).take([part]))


def test_progress_reaches_the_total(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    ModelRunner(tiny_execution_config(folder)).load(lambda done, total: seen.append((done, total)))
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] == sum(t.nbytes for t in load_file(folder / "model.safetensors").values())
    assert seen == sorted(seen)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop(NAME))
    with pytest.raises(StartupError, match=f"{NAME} is missing .* {folder}"):
        load_runner(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update(surprise=torch.zeros(2)))
    with pytest.raises(StartupError, match=r"model.safetensors holds 1 tensors .* surprise"):
        load_runner(folder)


def test_a_stored_tied_head_is_no_surprise(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path, "llama")
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load_runner(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({NAME: torch.zeros(48, 70)}))
    with pytest.raises(StartupError, match=rf"{NAME} in .*model.safetensors has shape \[48, 70\].*\[48, 72\]"):
        load_runner(folder)


def test_a_file_cut_short_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StartupError, match=r"model.safetensors is cut short"):
        load_runner(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x10" + bytes(7) + b"not JSON at all!"])
def test_a_damaged_header_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(StartupError, match=r"model.safetensors"):
        load_runner(folder)


def test_a_shard_that_the_index_lists_must_exist(tmp_path: Path) -> None:
    folder = build_tiny_model(tmp_path, "qwen2", max_shard_size="60KB")
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(StartupError, match=f"{shard.name} is missing"):
        load_runner(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(StartupError, match=r"no \*.safetensors"):
        load_runner(folder)


def test_dummy_weights_need_only_the_config_and_agree_between_ranks(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    load_runner(folder, load_format="dummy")
    whole = DummySource(seed=1, dtype=torch.float32, device="cpu").take([Part("w", (30, 20))])
    part = DummySource(seed=1, dtype=torch.float32, device="cpu").take(
        [Part("w", (30, 20), rows=range(10, 20), cols=range(5, 20))]
    )
    other = DummySource(seed=2, dtype=torch.float32, device="cpu").take([Part("w", (30, 20))])
    assert torch.equal(part, whole[10:20, 5:])
    assert not torch.equal(whole, other)


TIED = pytest.param(
    "bfloat16",
    {"tie_word_embeddings": True, "vocab_size": 100_000},
    id="tied",
    marks=pytest.mark.skipif(not has_packed_linear(torch.bfloat16), reason="oneDNN's layout gives no rows back"),
)


@pytest.mark.parametrize(("dtype", "changes"), [("float32", {}), ("bfloat16", {}), TIED])
@pytest.mark.processes
def test_peak_memory_at_load_is_at_most_a_tenth_above_the_weights(
    tmp_path: Path, dtype: str, changes: dict[str, object]
) -> None:
    """In a process of its own: resident memory's peak while loading, against the weights' bytes.

    Linears are also repacked, some at a time. The KV cache takes no memory before its pages are written.
    """
    folder = build_tiny_model(
        tmp_path,
        "llama",
        dtype=getattr(torch, dtype),
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=40 if dtype == "bfloat16" else 20,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        max_shard_size="50MB",
        **changes,
    )
    program = (
        "import json, re, sys\n"
        "import torch\n"
        "from pathlib import Path\n"
        "from support.step_driver import tiny_execution_config\n"
        "from tandem_runtime.execution.runner import ModelRunner\n"
        "torch.zeros(64, 64, dtype=torch.bfloat16) @ torch.zeros(64, 64, dtype=torch.bfloat16)\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "runner = ModelRunner(tiny_execution_config(Path(sys.argv[1]), kv_cache_memory='256MiB'))\n"
        "before = peak()\n"
        "runner.load()\n"
        "print(json.dumps([before, peak()]))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{program}", str(folder)],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
        # Else glibc's heap, whose threshold depends on what the imports freed, adds a constant 37 MB now and then.
        env=os.environ | {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"},
    ).stdout
    before, after = json.loads(output)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert weights > 150e6
    assert weights * 0.9 < after - before <= weights * 1.1


def test_config_and_checkpoint_that_disagree(folder: Path) -> None:
    edit_config(folder, intermediate_size=80)
    with pytest.raises(StartupError, match=r"config.json asks for \[80, 48\]"):
        load_runner(folder)
