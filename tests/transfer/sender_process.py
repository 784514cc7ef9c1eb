"""A sender in its own process: prints `ready`, takes `open`, `send FIRST COUNT`, `finish`, prints reports as JSON.

python -m transfer.sender_process PORT JOB_ID SLOTS_JSON [nixl]
"""

from __future__ import annotations

import json
import sys

import msgspec
import numpy as np
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.nixl.agent import NixlAgent, dram
from tandem_runtime.transfer.nixl.export import NixlExport
from tandem_runtime.transfer.protocol import SendJob, SendReport
from tandem_runtime.transfer.tcp import TcpSender
from transfer.rig import TOKEN, layout


def main() -> None:
    port, job_id, slots = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    shape = layout()
    pages = np.full((64, shape.page_bytes), 0x55, dtype=np.uint8)
    transports, cache = sys.argv[4:], memoryview(pages)  # type: ignore[arg-type]
    export = NixlExport(NixlAgent(), dram(cache)) if transports else None
    sender = TcpSender(PageMemory(cache, shape, 0), report, stall_timeout_s=1.0, nixl=export)
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
                transports=transports,
            )
            sender.open(job)
        elif command == "send":
            first, count = map(int, numbers)
            sender.send(job_id, first, list(range(first, first + count)))
        else:
            sender.finish(job_id)
    sender.stop()


def report(done: SendReport) -> None:
    print(msgspec.json.encode(done).decode(), flush=True)


if __name__ == "__main__":
    main()
