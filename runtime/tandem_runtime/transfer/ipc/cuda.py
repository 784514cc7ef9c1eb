"""A CUDA device's memory, by the driver's API; its errors stop here."""

from __future__ import annotations

from typing import Any

import torch
from cuda.bindings import driver

from tandem_runtime.core.errors import StartupError
from tandem_runtime.transfer.cuda import device_errors, pages_stream, working_in
from tandem_runtime.transfer.ipc.checksum import WordSums

_FILE = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR


class CudaDevice:
    """A `device.Device`. Its stream is its own: no copy waits for a step and no step for a copy.

    Owners hand pages over only when the steps that wrote them have ended: nothing here waits for another stream.
    """

    def __init__(self, ordinal: int) -> None:
        """Raises `StartupError`."""
        self._torch_device = torch.device("cuda", ordinal)
        self._stream = pages_stream(self._torch_device)
        try:
            _done(driver.cuInit(0))
            self._device = _done(driver.cuDeviceGet(ordinal))
            # The one that PyTorch uses. A thread has none before its first call of the runtime's API.
            self._context = _done(driver.cuDevicePrimaryCtxRetain(self._device))
            shares = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
            if not _done(driver.cuDeviceGetAttribute(shares, self._device)):
                raise OSError("it has no file descriptors for memory")
            self._properties = _properties(ordinal)
            minimum = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
            self._granularity: int = _done(driver.cuMemGetAllocationGranularity(self._properties, minimum))
        except OSError as error:
            raise StartupError(f"--kv-transport ipc: GPU {ordinal} cannot share memory: {error}; use tcp") from error
        self.uuid = f"GPU-{torch.cuda.get_device_properties(ordinal).uuid}"
        cards = range(torch.cuda.device_count())
        self.most_bytes = max(torch.cuda.get_device_properties(card).total_memory for card in cards)

    def allocate(self, num_bytes: int) -> tuple[torch.Tensor, int]:
        size = self._rounded(num_bytes)
        try:
            self._enter()
            handle = _done(driver.cuMemCreate(size, self._properties, 0))
            file: int = _done(driver.cuMemExportToShareableHandle(handle, _FILE, 0))
            memory = _Memory(self._mapped(handle, size), num_bytes)
        except OSError as error:
            raise StartupError(
                f"--kv-transport ipc: {num_bytes / 2**30:.1f} GiB of {self.uuid} cannot be had as shared memory: "
                f"{error}; lower --gpu-memory-utilization, or use tcp"
            ) from error
        return torch.as_tensor(memory, device=self._torch_device).zero_(), int(file)

    def map(self, file: int, num_bytes: int) -> int:
        self._enter()
        return self._mapped(_done(driver.cuMemImportFromShareableHandle(file, _FILE)), self._rounded(num_bytes))

    def unmap(self, address: int, num_bytes: int) -> None:
        self._enter()
        size = self._rounded(num_bytes)
        _done(driver.cuMemUnmap(address, size))
        _done(driver.cuMemAddressFree(address, size))

    def copy(self, source: int, target_B: torch.Tensor) -> None:
        self._enter()
        _done(driver.cuMemcpyDtoDAsync(target_B.data_ptr(), source, target_B.nbytes, self._stream.cuda_stream))
        with device_errors():
            self._stream.synchronize()

    def checksum(self, page_B: torch.Tensor, sums: WordSums) -> int:
        with working_in(self._stream):
            return sums(page_B)

    def _mapped(self, handle: Any, size: int) -> int:
        """The address; the mapping alone keeps the memory then. Raises `OSError`; nothing is left then."""
        address = None
        try:
            address = int(_done(driver.cuMemAddressReserve(size, 0, 0, 0)))
            _done(driver.cuMemMap(address, size, 0, handle, 0))
            access = driver.CUmemAccessDesc()
            access.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
            access.location.id = self._torch_device.index
            access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
            try:
                _done(driver.cuMemSetAccess(address, size, [access], 1))
            except OSError:
                _done(driver.cuMemUnmap(address, size))
                raise
        except OSError:
            if address is not None:
                driver.cuMemAddressFree(address, size)
            raise
        finally:
            driver.cuMemRelease(handle)
        return address

    def _enter(self) -> None:
        _done(driver.cuCtxSetCurrent(self._context))

    def _rounded(self, num_bytes: int) -> int:
        return -(-num_bytes // self._granularity) * self._granularity


class _Memory:
    """What PyTorch takes for a CUDA array; mapped as long as the process lives."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def _properties(ordinal: int) -> Any:
    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = ordinal
    properties.requestedHandleTypes = _FILE
    return properties


def _done(result: tuple[Any, ...]) -> Any:
    """The value of a call, if it has one. Raises `OSError`."""
    status, *values = result
    if status != driver.CUresult.CUDA_SUCCESS:
        raise OSError(status.name)
    return values[0] if values else None
