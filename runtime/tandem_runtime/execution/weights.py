"""Where a layer's weights come from: a sharded, lazily read checkpoint, or random numbers of the same shape.

A layer asks for the part it holds and gets one tensor, assembled in place from the checkpoint's tensors. Files are read
with `pread` straight into that tensor, never mapped, so that the process holds no second copy of the weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tandem_runtime.core.errors import StartupError
from tandem_runtime.execution.fp8 import (
    BLOCK,
    COLUMN_STEP,
    FP8,
    Fp8Weight,
    block_of_rows,
    dequantize_blocks,
    quantize_blocks,
    stack,
)
from tandem_runtime.execution.safetensors_file import SafetensorsFile, TensorEntry, open_checkpoint
from tandem_runtime.execution.upload import to_device

SCALES_SUFFIX = "_scale_inv"
"""Of the name of an fp8 weight's scales."""
Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in total)."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows and columns of one checkpoint tensor; None: all. A vector has rows only."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor in the checkpoint."""
    rows: range | None = None
    cols: range | None = None

    @property
    def taken_rows(self) -> range:
        return range(self.shape[0]) if self.rows is None else self.rows

    @property
    def taken_cols(self) -> range:
        width = 1 if len(self.shape) == 1 else self.shape[1]
        return range(width) if self.cols is None else self.cols


class WeightSource(ABC):
    """Tensors of one dtype on one device."""

    LENT_ELEMENTS = 2 << 20

    def __init__(self, *, dtype: torch.dtype, device: str) -> None:
        self.dtype = dtype
        self.device = device
        self._lent = torch.empty(0, dtype=dtype, device=device)

    def take(self, parts: Sequence[Part]) -> torch.Tensor:
        """The parts below one another, as one new tensor; raises `StartupError`."""
        return self._assemble(torch.empty(_shape(parts), dtype=self.dtype, device=self.device), parts)

    def lend(self, parts: Sequence[Part]) -> torch.Tensor:
        """As `take`, in a buffer that the next `lend` overwrites: for weights that are repacked at once.

        A new tensor for each would leave the heap in pieces, a fifth larger than the weights.
        """
        shape = _shape(parts)
        if shape.numel() > self._lent.numel():
            self._lent = torch.empty(shape.numel(), dtype=self.dtype, device=self.device)
        return self._assemble(self._lent[: shape.numel()].view(shape), parts)

    def lend_in_blocks(self, parts: Sequence[Part]) -> Iterator[tuple[int, torch.Tensor]]:
        """As `lend`, some rows at a time: (first row, rows). A vocabulary is a fifth of a small model."""
        first = 0
        for part in parts:
            rows = part.taken_rows
            step = max(1, self.LENT_ELEMENTS // max(1, len(part.taken_cols)))
            for start in range(0, len(rows), step):
                block = rows[start : start + step]
                yield first + start, self.lend([replace(part, rows=block)])
            first += len(rows)

    def _assemble(self, target: torch.Tensor, parts: Sequence[Part]) -> torch.Tensor:
        row = 0
        for part in parts:
            count = len(part.taken_rows)
            self._fill(target[row : row + count], part)
            row += count
        return target

    @abstractmethod
    def leave(self, names: Iterable[str]) -> None:
        """Other ranks ask for these."""

    def take_fp8(self, parts: Sequence[Part]) -> Fp8Weight:
        """As `take`, block-wise fp8: as the checkpoint has it, or quantised here."""
        return stack([self._fp8_part(part) for part in parts])

    def _fp8_part(self, part: Part) -> Fp8Weight:
        return quantize_blocks(self.take([part]))

    @abstractmethod
    def _fill(self, target: torch.Tensor, part: Part) -> None: ...

    @abstractmethod
    def finish(self) -> None:
        """Raises `StartupError` when the checkpoint holds tensors that nobody asked for."""


class CheckpointSource(WeightSource):
    """A folder's `*.safetensors`, whole or sharded (with or without an index)."""

    STAGING_BYTES = 16 << 20
    IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)

    def __init__(
        self, folder: Path, *, dtype: torch.dtype, device: str, progress: Progress, ignore: frozenset[str]
    ) -> None:
        """`ignore`: tensors that may be present and are not needed (a tied `lm_head.weight`)."""
        super().__init__(dtype=dtype, device=device)
        self._entries: dict[str, tuple[SafetensorsFile, TensorEntry]] = open_checkpoint(folder)
        self._folder = folder
        self._progress = progress
        self._unused = {
            name for name in self._entries if name not in ignore and not name.endswith(self.IGNORED_SUFFIXES)
        }
        self._total = sum(self._entries[name][1].num_bytes for name in self._unused)
        self._done = 0
        progress(0, self._total)

    def _fill(self, target: torch.Tensor, part: Part) -> None:
        if part.name not in self._entries:
            raise StartupError(f"tensor {part.name} is missing from the safetensors files in {self._folder}")
        file, entry = self._entries[part.name]
        if entry.shape != part.shape:
            raise StartupError(
                f"tensor {part.name} in {file.path} has shape {list(entry.shape)};"
                f" config.json asks for {list(part.shape)}"
            )
        if entry.dtype == FP8 and target.dtype != FP8:
            target.copy_(dequantize_blocks(self._fp8_as_stored(part), target.dtype))
        elif part.cols is None and target.device.type == "cpu" and target.dtype == entry.dtype:
            file.read_rows(entry, part.taken_rows, target)
        else:
            self._fill_in_blocks(target, part, file, entry)
        if part.name in self._unused:
            self._unused.discard(part.name)
            self._done += entry.num_bytes
            self._progress(self._done, self._total)

    def leave(self, names: Iterable[str]) -> None:
        for name in names:
            for left in {name, f"{name}{SCALES_SUFFIX}"} & self._unused:
                self._unused.discard(left)
                self._total -= self._entries[left][1].num_bytes

    def _fp8_part(self, part: Part) -> Fp8Weight:
        stored = self._entries.get(part.name)
        if stored is None or stored[1].dtype != FP8 or part.taken_cols.start % COLUMN_STEP:
            return super()._fp8_part(part)
        return self._fp8_as_stored(part)

    def _fp8_as_stored(self, part: Part) -> Fp8Weight:
        rows, cols = part.taken_rows, part.taken_cols
        weight_NK = torch.empty((len(rows), len(cols)), dtype=FP8, device=self.device)
        self._fill(weight_NK, part)
        row_blocks, col_blocks = (range(r.start // BLOCK, -(-r.stop // BLOCK)) for r in (rows, cols))
        shape = (-(-part.shape[0] // BLOCK), -(-part.shape[1] // BLOCK))
        scale_RC = torch.empty((len(row_blocks), len(col_blocks)), dtype=torch.float32, device=self.device)
        self._fill(scale_RC, Part(f"{part.name}{SCALES_SUFFIX}", shape, row_blocks, col_blocks))
        return Fp8Weight(
            weight_NK,
            scale_RC,
            block_of_rows(rows.start % BLOCK, len(rows), weight_NK.device),
            cols.start % BLOCK,
            rows.start % BLOCK == 0,
        )

    def _fill_in_blocks(self, target: torch.Tensor, part: Part, file: SafetensorsFile, entry: TensorEntry) -> None:
        """Reads whole rows into a small buffer, then takes columns, casts and moves to the device."""
        rows, cols = part.taken_rows, part.taken_cols
        step = max(1, self.STAGING_BYTES * entry.shape[0] // max(1, entry.num_bytes))
        for first in range(0, len(rows), step):
            block = rows[first : first + step]
            read = torch.empty((len(block), *entry.shape[1:]), dtype=entry.dtype)
            file.read_rows(entry, block, read)
            wanted = read if part.cols is None else read[:, cols.start : cols.stop]
            # Page-locked, a block travels to the device while the next one is read.
            there = to_device(wanted.contiguous(), target.device)
            target[first : first + len(block)].copy_(there, non_blocking=True)

    def finish(self) -> None:
        for file in {id(file): file for file, _ in self._entries.values()}.values():
            file.close()
        if self._unused:
            name = min(self._unused)
            raise StartupError(
                f"{self._entries[name][0].path} holds {len(self._unused)} tensors that the architecture has no use for,"
                f" such as {name}"
            )


class DummySource(WeightSource):
    """Small random numbers that depend on (seed, tensor name, row, column) alone, so that ranks agree."""

    POOL = 1_000_003
    """A prime: rows of any width start at different numbers of the pool."""
    STAGING_ELEMENTS = 4 << 20

    def __init__(self, *, seed: int, dtype: torch.dtype, device: str) -> None:
        super().__init__(dtype=dtype, device=device)
        generator = torch.Generator().manual_seed(seed)
        pool = torch.randn(self.POOL, generator=generator).mul_(0.02)
        self._pool = pool.to(dtype=dtype, device=device)

    def _fill(self, target: torch.Tensor, part: Part) -> None:
        if len(part.shape) == 1:
            target.fill_(0.0 if part.name.endswith("bias") else 1.0)
            return
        start = sum((i + 1) * byte for i, byte in enumerate(part.name.encode())) * 7919
        cols = torch.arange(part.taken_cols.start, part.taken_cols.stop, device=self.device)
        step = max(1, self.STAGING_ELEMENTS // max(1, len(part.taken_cols)))
        for first in range(0, len(part.taken_rows), step):
            rows = part.taken_rows[first : first + step]
            index = torch.arange(rows.start, rows.stop, device=self.device)[:, None] * part.shape[1] + cols + start
            target[first : first + len(rows)] = self._pool[index.remainder_(self.POOL)]

    def leave(self, names: Iterable[str]) -> None:
        pass

    def finish(self) -> None:
        pass


def _shape(parts: Sequence[Part]) -> torch.Size:
    num_rows = sum(len(part.taken_rows) for part in parts)
    return torch.Size((num_rows,) if len(parts[0].shape) == 1 else (num_rows, len(parts[0].taken_cols)))
