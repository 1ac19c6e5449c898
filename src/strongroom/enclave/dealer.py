"""A dealer's enclave boots, gives up its privileges, and only then loads what it deals with.

NumPy starts threads when it is imported, and privileges are a thread's own.
"""

from __future__ import annotations

import sys

from strongroom.enclave.boot import configured, enter
from strongroom.enclave.confine import become
from strongroom.enclave.control import Control


def run(control: Control) -> int:
    """Deal to the end of the program; its exit status."""
    config, layout = configured(control)
    become(control, config, layout)
    from strongroom.enclave.dealing import deal

    return deal(control, config.command, layout)


if __name__ == "__main__":
    sys.exit(enter(run))
