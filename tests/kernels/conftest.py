"""Kernels run on two devices: on a GPU (`-m gpu`), and on the CPU under Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, and one process may import it in any test folder. So the interpreter
has a process of its own: `test_under_interpreter.py` starts pytest on this folder with the variable set, and without
it the tests on the CPU are left out. To work on one of them: `TRITON_INTERPRET=1 pytest tests/kernels/test_NAME.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
HERE = Path(__file__).parent
# Nothing is compiled under the interpreter, C kernels do not know it, and it starts no second one.
NOT_INTERPRETED = ["test_ahead_of_time.py", "test_serving_shapes.py", "test_under_interpreter.py", "native"]
# The simulated device interprets what a real one would compile.
collect_ignore = NOT_INTERPRETED if INTERPRETED else ["test_simulated_device.py"]


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fresh numbers for every test, the same in every run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(sum(request.node.name.encode()))
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wrong = "cuda" if INTERPRETED else "cpu"
    left_out = [item for item in items if HERE in item.path.parents and _device_of(item) == wrong]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _device_of(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    return callspec.params.get("device") if callspec else None
