"""The module that a launcher starts to run a program: first what takes long and needs no imports, then boot."""

from __future__ import annotations

import sys
from functools import partial

from strongroom.enclave.unmeasured import hiding


def start() -> int:
    """Boot, run the program, and report to the host how it went."""
    hidden = hiding()  # by a process of its own, while this one imports the rest
    from strongroom.enclave import boot, program

    return boot.main(partial(program.run, hidden=hidden))


if __name__ == "__main__":
    sys.exit(start())
