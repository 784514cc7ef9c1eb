"""A CUDA device without hardware that keeps the rules of real ones: what fails on a card, or waits for it, fails here.

Tensors "on cuda:0" are computed on the CPU, by torch and, for kernels, by Triton's interpreter. Refused are operations
that mix host and device tensors, kernels that get host tensors or grids no launch can have and, while steps are served,
whatever makes the host wait: reading the device's numbers, or copies that are not of page-locked memory. What is copied
to the host arrives there once an event recorded later has been waited for; until then the host reads `NOT_YET`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from tandem_kernels.fp8_scaled_mm import supported
from tandem_kernels.launch import Launch, capability, launched_by, on_device, sm_count
from tandem_kernels.reference import fp8_scaled_mm as reference
from torch.nn.functional import ScalingType
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
MAX_GRID = (2**31 - 1, 65535, 65535)
"""CUDA C++ Programming Guide, table of compute capabilities."""
NOT_YET = 77
"""Every byte of host memory that a copy is on its way to."""
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
"""Whose answer, or its shape, the host needs before it can go on."""


class DeviceRuleBroken(AssertionError):
    """What a card would refuse, answer with garbage, or make the host wait for."""


class OnDevice(torch.Tensor):
    there: torch.Tensor
    """The CPU tensor behind it."""
    of: SimulatedCuda

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, there: torch.Tensor, of: SimulatedCuda) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, there.shape, strides=there.stride(), storage_offset=there.storage_offset(), dtype=there.dtype,
            # In C++ a device that needs no driver; Python is told `DEVICE`.
            device="meta", dispatch_device=True,
        )  # fmt: skip
        made.there, made.of = there, of
        return made  # type: ignore[no-any-return]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return DEVICE
        leaves = tree_leaves((args, kwargs))
        of = next(x.of for x in leaves if isinstance(x, OnDevice))
        return of.compute(func, args, kwargs or {}, leaves)


class SimulatedCuda:
    """One device, for the length of a test."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.serving = False
        """Whether the host may not wait."""
        self._capturing = False
        self._arriving: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._copies = 0
        self._pinned: dict[int, torch.Tensor] = {}
        """By address; kept, so that no other memory gets it."""

    @contextmanager
    def capture(self) -> Iterator[None]:
        """As a graph is captured: nothing at all may cross between host and device."""
        self._capturing = True
        yield
        self._capturing = False

    def run(self, launch: Launch) -> None:
        name = launch.kernel.__name__
        for argument, value in launch.args.items():
            if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice):
                raise DeviceRuleBroken(f"{name}: {argument} is on the host")
        if any(size > most for size, most in zip(launch.grid, MAX_GRID, strict=False)):
            raise DeviceRuleBroken(f"{name}: a grid of {launch.grid}")
        self.launches.append(launch)
        on_device(launch._replace(args={k: _there(v) for k, v in launch.args.items()}))

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any], leaves: list[Any]) -> Any:
        # In inference mode composite operations arrive whole; what waits is among their parts.
        if (parts := func.decompose(*args, **kwargs)) is not NotImplemented:
            return parts
        if func is aten.copy_.default:
            return self._copy(*args, **kwargs)
        if func is aten._scaled_mm_v2.default:
            return OnDevice(_scaled_mm(*tree_map(_there, args)), self)
        if func in WAITING or (func is aten.index.Tensor and any(_is_mask(x) for x in args[1])):
            self._wait(str(func))
        for x in leaves:
            # Numbers may be host tensors without dimensions.
            if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice) and x.dim():
                raise DeviceRuleBroken(f"{func}: {tuple(x.shape)} is on the host")
        if "device" in kwargs:
            kwargs = kwargs | {"device": "cpu"}
        found = func(*tree_map(_there, args), **tree_map(_there, kwargs))
        known = {id(x.there): x for x in leaves if isinstance(x, OnDevice)}

        def wrapped(x: Any) -> Any:
            return (known[id(x)] if id(x) in known else OnDevice(x, self)) if isinstance(x, torch.Tensor) else x

        return tree_map(wrapped, found)

    def up(self, host: torch.Tensor, *, non_blocking: bool) -> OnDevice:
        made = OnDevice(torch.empty_like(host), self)
        self._copy(made, host, non_blocking)
        return made

    def down(self, x: OnDevice) -> torch.Tensor:
        return self._copy(torch.empty_like(x.there), x)

    def pin(self, host: torch.Tensor) -> torch.Tensor:
        self._no_crossing("page-locking memory")
        self._pinned[host.untyped_storage().data_ptr()] = host
        return host

    def event(self, **_: object) -> SimpleNamespace:
        event = SimpleNamespace(copies=0, elapsed_time=lambda other: 1.0)
        event.record = lambda: setattr(event, "copies", self._copies)
        event.synchronize = lambda: self._arrive(event.copies)
        return event

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if isinstance(target, OnDevice) and isinstance(source, OnDevice):
            target.there.copy_(source.there)
            return target
        self._no_crossing("a copy between host and device")
        host = source if isinstance(target, OnDevice) else target
        pinned = host.untyped_storage().data_ptr() in self._pinned
        if not (non_blocking and pinned):
            self._wait(f"a copy of {tuple(host.shape)} ({non_blocking=}, {pinned=})")
        if isinstance(target, OnDevice):
            target.there.copy_(source)
        else:
            self._copies += 1
            self._arriving.append((target, source.there.clone()))  # type: ignore[attr-defined]
            target.view(-1).view(torch.uint8).fill_(NOT_YET)
            if not non_blocking:
                self._arrive(self._copies)
        return target

    def _arrive(self, copies: int) -> None:
        late = self._copies - copies
        while len(self._arriving) > late:
            target, numbers = self._arriving.pop(0)
            target.copy_(numbers)

    def _wait(self, what: str) -> None:
        self._no_crossing(what)
        if self.serving:
            raise DeviceRuleBroken(f"{what} waits for the device")

    def _no_crossing(self, what: str) -> None:
        if self._capturing:
            raise DeviceRuleBroken(f"{what} while a graph is captured")


class _Bindings(TorchFunctionMode):
    """What would look for a real device in torch's bindings: calls that name it, and page-locking."""

    def __init__(self, device: SimulatedCuda) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.pin_memory:
            return self._device.pin(args[0].clone())
        if func is torch.Tensor.to:
            asked = [kwargs.pop("device", None), *(x for x in args[1:] if isinstance(x, str | torch.device))]
            args = tuple(x for x in args if not isinstance(x, str | torch.device))
            blocking = not kwargs.pop("non_blocking", False)
            x = func(*args, **kwargs) if len(args) > 1 or kwargs else args[0]
            if any(map(_on_cuda, asked)):
                return x if isinstance(x, OnDevice) else self._device.up(x, non_blocking=not blocking)
            return self._device.down(x) if isinstance(x, OnDevice) and any(asked) else x
        if func is torch.Tensor.cpu and isinstance(args[0], OnDevice):
            return self._device.down(args[0])
        pinned = kwargs.pop("pin_memory", False)
        if _on_cuda(kwargs.get("device")) and not any(isinstance(x, OnDevice) for x in tree_leaves((args, kwargs))):
            made = func(*args, **kwargs | {"device": "cpu"})
            if func is torch.tensor:
                return self._device.up(made, non_blocking=False)
            return OnDevice(made, self._device)
        found = func(*args, **kwargs)
        return self._device.pin(found) if pinned else found


@contextmanager
def simulated_cuda(*, capability_of: tuple[int, int] = (9, 0), sms: int = 132) -> Iterator[SimulatedCuda]:
    """Under Triton's interpreter: everything inside finds one card."""
    if not torch.cuda.is_available():
        # Guards of devices that are not there do nothing then, as for fake tensors.
        torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    device = SimulatedCuda()
    answers: dict[str, Callable[..., object]] = {
        "get_device_capability": lambda *_: capability_of,
        "get_device_properties": lambda *_: SimpleNamespace(multi_processor_count=sms),
        "mem_get_info": lambda *_: (70 << 30, 80 << 30),
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 1 << 30,
        "memory_reserved": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda *_: None,
        "synchronize": lambda *_: None,
        "Event": device.event,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", answer))
        for known in (capability, sm_count, supported):
            known.cache_clear()
            stack.callback(known.cache_clear)
        stack.enter_context(launched_by(device.run))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_Bindings(device))
        yield device


def _scaled_mm(
    x_TK: torch.Tensor, weight_KN: torch.Tensor, x_scale: list[torch.Tensor], x_recipe: list[int], _: Any,
    weight_scale: list[torch.Tensor], recipe: list[int], __: Any, bias: None, dtype: torch.dtype, *rest: Any,
) -> torch.Tensor:  # fmt: skip
    """cuBLASLt's block-wise fp8 product on Hopper, and what it asks of its operands."""
    rows, depth = x_TK.shape
    columns, groups = weight_KN.shape[1], depth // 128
    by_blocks = recipe == [int(ScalingType.BlockWise128x128.value)]
    step = -(-groups // 4) * 4 if by_blocks else columns
    rules = {
        "x row-major": x_TK.is_contiguous(),
        "weight column-major": weight_KN.t().is_contiguous(),
        "multiples": rows % 4 == columns % 16 == depth % 128 == 0,
        "recipe of x": x_recipe == [int(ScalingType.BlockWise1x128.value)],
        "scales of x": (x_scale[0].shape, x_scale[0].stride()) == ((rows, groups), (1, rows)),
        "scales of the weight": weight_scale[0].stride() == (1, step)
        and weight_scale[0].shape == ((step, -(-columns // 128)) if by_blocks else (columns, groups)),
        "16 bit": dtype.itemsize == 2,
    }
    if broken := [rule for rule, kept in rules.items() if not kept]:
        raise DeviceRuleBroken(f"scaled_mm: {broken}")
    # Rows of padding hold anything.
    x_64, scale_64 = x_TK.double().nan_to_num(), x_scale[0].double()
    found = reference.fp8_scaled_mm(
        x_64, scale_64, weight_KN.double(), weight_scale[0].double(), group=128, by_blocks=by_blocks
    )
    return found.to(dtype)


def _there(x: Any) -> Any:
    return x.there if isinstance(x, OnDevice) else x


def _on_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _is_mask(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8)
