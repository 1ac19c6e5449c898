"""Start Flower's SuperLink, run the application beside this file once, and end.

::

    python aggregate.py OUT --clients 3

An ordinary script: others reach the SuperLink at port 9092 of this host, and ``OUT`` gets what the server keeps.
"""

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PORT, PATIENCE = 9092, 180
NO_INSTALLING = "--disable-runtime-dependency-installation"
APPLICATION = Path(__file__).parent


def await_link(link: subprocess.Popen[bytes]) -> None:
    """Until it listens."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and link.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", PORT)) == 0:
                return
        time.sleep(0.1)
    sys.exit(f"aggregate: the SuperLink does not listen on port {PORT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    programs = Path(sys.executable).parent
    home = Path(tempfile.mkdtemp())
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "127.0.0.1:{PORT}"\ninsecure = true\n'
    )
    os.environ |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    link = subprocess.Popen(  # noqa: S603
        [programs / "flower-superlink", "--insecure", "--host", "0.0.0.0", "--port", str(PORT), NO_INSTALLING]  # noqa: S104
    )
    try:
        await_link(link)
        said = f"clients={args.clients} rounds={args.rounds} out='{args.out.resolve()}'"
        command = [programs / "flwr", "run", APPLICATION, "here", "--stream", "--run-config", said]
        status = subprocess.call(command)  # noqa: S603
    finally:
        link.terminate()
        link.wait()
    sys.exit(status or not (args.out / "weights.txt").exists())


if __name__ == "__main__":
    main()
