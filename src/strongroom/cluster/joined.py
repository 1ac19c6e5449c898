"""Waits until a Ray cluster has so many live nodes: ``python -m strongroom.cluster.joined N``, ended by who started it.

A process of its own, since Ray's calls wait for a head that is not there as long as they like.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

_BETWEEN_LOOKS = 0.2


def main(wanted: int) -> None:
    ray: Any = importlib.import_module("ray")  # an extra, untyped
    while True:
        try:
            ray.init(log_to_driver=False, logging_level="critical", configure_logging=False)
            break
        except (ConnectionError, RuntimeError):
            time.sleep(_BETWEEN_LOOKS)
    while (alive := sum(bool(node["Alive"]) for node in ray.nodes())) < wanted:
        print(alive, flush=True)
        time.sleep(_BETWEEN_LOOKS)
    print(alive, flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
