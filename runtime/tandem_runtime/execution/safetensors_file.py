"""Reading safetensors files without mapping them (format: https://huggingface.co/docs/safetensors).

The reference library maps whole files, so that every page read counts as the process's memory; a loader that must not
hold the weights twice reads ranges instead.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from tandem_runtime.core.errors import StartupError

INDEX_NAME = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100 << 20
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """From the beginning of the file, in bytes."""
    num_bytes: int


class SafetensorsFile:
    def __init__(self, path: Path) -> None:
        """Reads the header; raises `StartupError` naming the file when it is damaged."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise StartupError(f"{path} cannot be opened: {error.strerror}") from None
        size = os.fstat(self._fd).st_size
        length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            self.close()
            raise StartupError(f"{path} is no safetensors file, or is cut short")
        self.header = os.pread(self._fd, length, 8)
        try:
            self.entries = _entries(self.header, 8 + length)
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise StartupError(f"{path} has a damaged header: {error}") from None
        end = max((entry.offset + entry.num_bytes for entry in self.entries.values()), default=0)
        if end > size:
            self.close()
            raise StartupError(f"{path} is cut short: {size} bytes, its header promises {end}; download it again")

    def read_rows(self, entry: TensorEntry, rows: range, target: torch.Tensor) -> None:
        """Fills the contiguous CPU tensor `target` ([len(rows), ...], the entry's dtype)."""
        row_bytes = entry.num_bytes // max(1, entry.shape[0] if entry.shape else 1)
        view = memoryview(target.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        position = entry.offset + rows.start * row_bytes
        while view:
            count = os.preadv(self._fd, [view[: 1 << 30]], position)
            if count == 0:
                raise StartupError(f"{self.path} was cut short while it was read")
            view = view[count:]
            position += count

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files: the index's where there is one, else all `*.safetensors`; raises `StartupError`."""
    index = folder / INDEX_NAME
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise StartupError(f"{index} cannot be read: {error}") from None
        for name in names:
            if not (folder / name).exists():
                raise StartupError(f"{folder / name} is missing, though {INDEX_NAME} lists it; download it again")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StartupError(f"{folder} holds no *.safetensors files")
    return files


def open_checkpoint(folder: Path) -> dict[str, tuple[SafetensorsFile, TensorEntry]]:
    tensors: dict[str, tuple[SafetensorsFile, TensorEntry]] = {}
    for path in weight_files(folder):
        file = SafetensorsFile(path)
        tensors |= {name: (file, entry) for name, entry in file.entries.items()}
    return tensors


def _entries(header: bytes, data_offset: int) -> dict[str, TensorEntry]:
    entries = {}
    for name, value in json.loads(header).items():
        if name == "__metadata__":
            continue
        if value["dtype"] not in _DTYPES:
            raise ValueError(f"tensor {name} has dtype {value['dtype']}, which is not supported")
        begin, end = value["data_offsets"]
        entry = TensorEntry(_DTYPES[value["dtype"]], tuple(value["shape"]), data_offset + begin, end - begin)
        if entry.num_bytes != entry.dtype.itemsize * torch.Size(entry.shape).numel():
            raise ValueError(f"tensor {name} has {entry.num_bytes} bytes for shape {list(entry.shape)}")
        entries[name] = entry
    return entries
