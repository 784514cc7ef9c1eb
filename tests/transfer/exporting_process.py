"""Exports four pages of 0x55 by NIXL, prints the export and the address of the first as JSON, waits for its end.

python -m transfer.exporting_process
"""

from __future__ import annotations

import base64
import json
import sys

import numpy as np
from tandem_runtime.transfer.memory import PageMemory
from tandem_runtime.transfer.nixl.agent import NixlAgent, dram
from tandem_runtime.transfer.nixl.export import NixlExport
from transfer.rig import layout


def main() -> None:
    shape = layout()
    cache = memoryview(np.full((4, shape.page_bytes), 0x55, dtype=np.uint8))  # type: ignore[arg-type]
    export = NixlExport(NixlAgent(), dram(cache), PageMemory(cache, shape, 0))
    agent = base64.b64encode(export.exported.agent).decode()
    print(json.dumps([agent, export.describe(0, range(shape.num_kv_heads)).address]), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
