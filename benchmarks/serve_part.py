"""A part of a pipeline in a process with little memory: ``python -m benchmarks.serve_part DOOR PIPELINE NUMBER MODEL``.

Loads ONNX Runtime, enters the control group behind DOOR (``-``: none), loads the part's model within it, prints the
port that it listens on, and answers whoever connects to it, as a part in an enclave answers its front door. What the
process held before it entered is not charged to the group (`strongroom.serve.plan.paging_probe`); with ``hard`` as a
fifth word it enters before it has imported anything, and all is.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
import sys
from pathlib import Path

RATE = "STRONGROOM_BENCH_RATE"  # bytes a second that leave, where that is limited
_MAX_PACING_RATE = 47  # SO_MAX_PACING_RATE, socket(7): for TCP the kernel paces by itself


def pace(sock: socket.socket, rate: int) -> None:
    """Limit what leaves by a TCP socket to so many bytes a second, as its link would; 0 for no limit."""
    if rate:
        sock.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, rate)


def main(door: str, pipeline: str, number: str, model: str, when: str = "") -> None:
    """Serve until the process is ended."""
    if when == "hard":
        Path(door).write_text(str(os.getpid()))
    from strongroom.channel import Identity, TlsChannel, accept
    from strongroom.errors import StrongroomError
    from strongroom.serve.pipeline import part
    from strongroom.serve.pipeline.document import Pipeline
    from strongroom.serve.runtime import onnxruntime

    onnxruntime()
    of = Pipeline.parse(Path(pipeline).read_text())
    if door != "-" and when != "hard":
        Path(door).write_text(str(os.getpid()))
    stage = part.load(of, int(number), Path(model).read_bytes())
    identity = Identity.fresh("part", now=dt.datetime.now(dt.UTC))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            sock, _ = listener.accept()
            pace(sock, int(os.environ.get(RATE, "0")))
            try:
                stream = accept(sock, expect=lambda chain: None, identity=identity)
                part.answer(of, int(number), stage, TlsChannel(stream, "front door", seconds=600))
            except StrongroomError:
                sock.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
