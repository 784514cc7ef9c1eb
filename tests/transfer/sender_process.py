"""A sender in its own process: prints `ready`, takes `open`, `send FIRST COUNT`, `finish`, prints reports as JSON.

python -m transfer.sender_process PORT JOB_ID SLOTS_JSON [nixl | PATH_OF_THE_UNIX_SOCKET [cuda]]
"""

from __future__ import annotations

import json
import sys

import msgspec
from tandem_runtime.core.kv import KVLayout
from tandem_runtime.transfer.ipc.export import IpcExport
from tandem_runtime.transfer.ipc.host import HostExport, SharedMemory
from tandem_runtime.transfer.ipc.memory import Export
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.nixl.agent import NixlAgent, dram
from tandem_runtime.transfer.nixl.export import NixlExport
from tandem_runtime.transfer.protocol import NIXL, SendJob, SendReport
from tandem_runtime.transfer.tcp import TcpSender
from transfer.rig import TOKEN, layout


def main() -> None:
    port, job_id, slots = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    shape = layout()
    memory = SharedMemory(64 * shape.page_bytes)
    memory.view[:] = b"\x55" * memory.view.nbytes
    source = PageMemory(memory.view, shape, 0)
    nixl, ipc, ipc_paths = None, None, list[str]()
    if sys.argv[4:] == [NIXL]:
        nixl = NixlExport(NixlAgent(), dram(memory.view), source)
    elif sys.argv[5:] == ["cuda"]:
        ipc, ipc_paths = IpcExport(_on_card(memory, shape)), sys.argv[4:5]
    elif sys.argv[4:]:
        ipc, ipc_paths = IpcExport(HostExport(memory, source)), sys.argv[4:]
    sender = TcpSender(source, report, stall_timeout_s=1.0, nixl=nixl, ipc=ipc)
    print("ready", flush=True)
    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "open":
            job = SendJob(
                job_id=job_id,
                data_token=TOKEN,
                host="127.0.0.1",
                data_ports=[port],
                slots=slots,
                transports=[NIXL] if nixl else [],
                ipc_paths=ipc_paths,
            )
            sender.open(job)
        elif command == "send":
            first, count = map(int, numbers)
            sender.send(job_id, first, list(range(first, first + count)))
        else:
            sender.finish(job_id)
    sender.stop()


def _on_card(memory: SharedMemory, shape: KVLayout) -> Export:
    """A copy of it. Nobody else waits for torch to be imported."""
    import torch
    from tandem_runtime.transfer.ipc.cuda import CudaDevice
    from tandem_runtime.transfer.ipc.device import DeviceExport

    device = CudaDevice(0)
    cache, file = device.allocate(memory.view.nbytes)
    cache.copy_(torch.frombuffer(memory.view, dtype=torch.uint8))
    torch.cuda.synchronize()
    return DeviceExport(device, cache, file, shape, 0)


def report(done: SendReport) -> None:
    print(msgspec.json.encode(done).decode(), flush=True)


if __name__ == "__main__":
    main()
