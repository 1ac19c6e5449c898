"""How the parties of `mpc run` end with the process that started them."""

from __future__ import annotations

import os
import signal
import threading


def die_with(lifeline: int) -> None:
    """End this process as SIGTERM does once the other end of a pipe is gone."""
    os.set_inheritable(lifeline, False)

    def watch() -> None:
        while os.read(lifeline, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="mpc lifeline", daemon=True).start()
