"""Take part in the training with one hospital's records, until the aggregator has ended.

::

    python hospital.py RECORDS.csv AGGREGATOR

An ordinary script around Flower's SuperNode, which stays on by itself when nobody answers: this one looks.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PORT, BETWEEN_LOOKS = 9092, 1.0


def listens(host: str) -> bool:
    """Whether an aggregator takes connections there."""
    try:
        socket.create_connection((host, PORT), timeout=10).close()
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("aggregator", help="the name of its host")
    parser.add_argument("--wait", type=float, default=60, help="seconds without it that are too many")
    parser.add_argument("--port", type=int, default=9094, help="a port of its own, where several are on one host")
    args = parser.parse_args()

    programs = Path(sys.executable).parent
    os.environ |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FLWR_HOME": tempfile.mkdtemp(),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    command = [programs / "flower-supernode", "--insecure", "--superlink", f"{args.aggregator}:{PORT}"]
    command += ["--port", str(args.port), "--node-config", f"data='{args.records.resolve()}'"]
    node = subprocess.Popen(command)  # noqa: S603
    met, last = False, time.monotonic()
    try:
        while time.monotonic() - last < args.wait:
            try:
                sys.exit(node.wait(BETWEEN_LOOKS))
            except subprocess.TimeoutExpired:
                if listens(args.aggregator):
                    met, last = True, time.monotonic()
    finally:
        node.kill()
        node.wait()
    if not met:
        sys.exit(f"hospital: no aggregator at {args.aggregator}:{PORT} within {args.wait:g} s")
    print("hospital: the aggregator has ended")


if __name__ == "__main__":
    main()
