"""Becomes PROGRAM, bound to die with its parent: `python tether.py PARENT_PID PROGRAM ARG...`.

`prctl(2)` PR_SET_PDEATHSIG survives exec, so the supervisor needs neither a preexec function (unsafe beside
threads) nor a process in between. Elsewhere than on Linux the program is not bound.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent_pid: int, argv: list[str]) -> None:
    if sys.platform == "linux":
        # SIGTERM, not SIGKILL: the program still ends its own children.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent_pid:
            sys.exit("the supervisor is gone")
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
