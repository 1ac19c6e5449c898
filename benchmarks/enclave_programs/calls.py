"""Make system calls; for each line of standard input (which, how often) the microseconds of one."""

import os
import sys
import time
from collections.abc import Callable

ZERO = os.open("/dev/zero", os.O_RDONLY)
CALLS: dict[str, Callable[[], object]] = {
    "getppid": os.getppid,
    "stat": lambda: os.stat("/usr/bin/env"),  # noqa: PTH116
    "open and close": lambda: os.close(os.open("/dev/null", os.O_RDONLY)),
    "read 4 KiB": lambda: os.pread(ZERO, 4096, 0),
}


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        name, _, count = line.strip().rpartition(" ")
        call = CALLS[name]
        began = time.perf_counter()
        for _ in range(int(count)):
            call()
        print((time.perf_counter() - began) * 1e6 / int(count), flush=True)


if __name__ == "__main__":
    main()
