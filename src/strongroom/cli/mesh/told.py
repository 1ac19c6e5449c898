"""What the enclaves that run here tell of their mesh: a file for each, which whoever launched it keeps up to date."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from strongroom.cas.files import replace
from strongroom.cli.workspace import Home

_DIRECTORY = "mesh"
_OUTSIDE = {"tunnels": "connections"}
_OF_THE_WIRE = ("op", "event")  # by which an enclave says what it reports


class Told:
    """The files of one launcher's enclaves."""

    def __init__(self, home: Home) -> None:
        self._directory = home.path / _DIRECTORY

    def heed(self, event: str, detail: Mapping[str, Any]) -> None:
        """Keep what one of them tells, while it runs."""
        if event not in ("mesh-status", "mesh-ended") or not isinstance(detail.get("name"), str):
            return
        path = self._directory / f"{os.getpid()}-{detail['name'][:150].replace('/', '-')}.json"
        if event == "mesh-ended":
            path.unlink(missing_ok=True)
            return
        self._directory.mkdir(mode=0o700, exist_ok=True)
        status = {name: value for name, value in detail.items() if name not in _OF_THE_WIRE}
        replace(path, json.dumps({**status, "launcher": os.getpid()}).encode())


def running(home: Home) -> list[dict[str, Any]]:
    """What enclaves tell whose launchers live, by name."""
    found = []
    for path in sorted((home.path / _DIRECTORY).glob("*.json")):
        try:
            status = json.loads(path.read_text())
            os.kill(int(status["launcher"]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)  # it was killed
            continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append(status)
    return sorted(found, key=lambda status: str(status.get("name")))


def prometheus(statuses: list[dict[str, Any]]) -> str:
    """The same in Prometheus' text format, version 0.0.4."""
    lines: list[str] = []
    for metric, kind, field, what in (
        ("tunnels", "gauge", "tunnels", "Tunnels that are open to a member, or connections outside."),
        ("tunnels_opened_total", "counter", "opened", "Tunnels or connections that were opened, by either end."),
        ("sent_bytes_total", "counter", "sent", "Bytes of the program that were sent."),
        ("received_bytes_total", "counter", "received", "Bytes for the program that came."),
    ):
        lines += [f"# HELP strongroom_mesh_{metric} {what}", f"# TYPE strongroom_mesh_{metric} {kind}"]
        for status in statuses:
            for member in status["members"]:
                labels = _labels(enclave=status["name"], member=member["name"])
                lines.append(f"strongroom_mesh_{metric}{labels} {int(member[field])}")
            for name, each in outside(status):
                labels = _labels(enclave=status["name"], outside=name)
                lines.append(f"strongroom_mesh_{metric}{labels} {int(each[_OUTSIDE.get(field, field)])}")
    lines += [
        "# HELP strongroom_mesh_refused_total What was refused, by why.",
        "# TYPE strongroom_mesh_refused_total counter",
    ]
    for status in statuses:
        for why, count in status["refusals"].items():
            lines.append(f"strongroom_mesh_refused_total{_labels(enclave=status['name'], why=why)} {int(count)}")
        for name, each in outside(status):
            for why, count in each["refusals"].items():
                labels = _labels(enclave=status["name"], outside=name, why=why)
                lines.append(f"strongroom_mesh_refused_total{labels} {int(count)}")
    return "\n".join(lines) + "\n"


def outside(status: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What an enclave tells of each host outside and each service for outsiders, by what people call it."""
    hosts = [(f"{each['host']}:{each['port']}", each) for each in status.get("egress", [])]
    services = [(f"{each['name']} at {each['endpoint']}", each) for each in status.get("published", [])]
    return [*hosts, *services]


def _labels(**labels: str) -> str:
    def quoted(value: object) -> str:
        return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return "{" + ",".join(f'{name}="{quoted(value)}"' for name, value in labels.items()) + "}"
