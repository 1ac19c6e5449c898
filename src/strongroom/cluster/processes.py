"""How Ray's processes are started in an enclave: on ports that are known, with Ray's own token, telling nobody.

Ports are fixed because a mesh may be told which ones its members use; two nodes never share a network. Ray numbers
nearly all of them at random otherwise. Source of the options: ``ray start --help`` of Ray 2.60.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROLL_PORT = 6378
GCS_PORT = 6379
_NODE_PORTS = {
    "node-manager-port": 6380,
    "object-manager-port": 6381,
    "runtime-env-agent-port": 6382,
    "dashboard-agent-listen-port": 6383,
    "dashboard-agent-grpc-port": 6384,
    "metrics-export-port": 6385,
    "min-worker-port": 10_002,
    "max-worker-port": 10_999,
}
TOKEN = "RAY_AUTH_TOKEN"  # noqa: S105  # the name of the variable


def start_command(*, head: str, own: str, slots: int, store_bytes: int) -> list[str]:
    """The command that runs one node until it is ended.

    Args:
        head: the head's address.
        own: this node's; the same one on the head.
        slots: processors that Ray may give to tasks here.
        store_bytes: of shared memory for objects.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    command += ["--head", f"--port={GCS_PORT}"] if own == head else [f"--address={head}:{GCS_PORT}"]
    command += [f"--node-ip-address={own}", f"--num-cpus={slots}", f"--object-store-memory={store_bytes}"]
    command += [f"--{option}={port}" for option, port in _NODE_PORTS.items()]
    return [*command, *(["--include-dashboard=false"] if own == head else [])]


def variables(base: dict[str, str], *, head: str, token: str, patience: float) -> dict[str, str]:
    """The variables of Ray's processes and of the job: `base`, the cluster's address, and its token.

    Args:
        patience: seconds after which a process that does not find the others gives up.
    """
    seconds = str(max(1, round(patience)))
    return {
        **base,
        # Ray starts its workers with what it finds there.
        "PATH": f"{Path(sys.executable).parent}:{base.get('PATH', '')}",
        "RAY_ADDRESS": f"{head}:{GCS_PORT}",
        "RAY_AUTH_MODE": "token",
        TOKEN: token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": seconds,
        "RAY_gcs_server_request_timeout_seconds": seconds,
        "RAY_gcs_rpc_server_reconnect_timeout_s": seconds,
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": seconds,
    }
