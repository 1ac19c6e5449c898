"""What `strongroom mesh status` shows of the enclaves that run here."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from strongroom.cli.main import main
from strongroom.cli.mesh.told import Told
from strongroom.cli.workspace import Home

MEMBER = {"name": "replica-1.a.b.mesh", "address": "10.0.0.2", "key": "sha256:00", "endpoint": "127.0.0.1:9"}
STATUS = {
    "op": "event",
    "event": "mesh-status",
    "replica": 0,
    "name": "replica-0.a.b.mesh",
    "address": "10.0.0.1",
    "members": [MEMBER | {"tunnels": 1, "opened": 2, "sent": 3, "received": 4096}],
    "tunnels": 1,
    "opening": 0,
    "limit": 100,
    "refusals": {"tcp": 5, "other": 0},
}


@pytest.fixture
def told(tmp_path, monkeypatch):
    monkeypatch.setenv("STRONGROOM_HOME", str(tmp_path / "home"))
    made = Told(Home.open())
    made.heed("mesh-status", STATUS)
    return made


def shown(capsys, *words):
    assert main(["mesh", "status", *words]) == 0
    return capsys.readouterr()


def test_it_is_what_the_enclave_told_last_and_nothing_of_the_wire(told, capsys):
    [status] = json.loads(shown(capsys, "--json").out)["enclaves"]
    assert status == {name: value for name, value in STATUS.items() if name not in ("op", "event")} | {
        "launcher": os.getpid()
    }
    text = shown(capsys).out
    assert "replica-1.a.b.mesh" in text and "4.0 KiB" in text and "refused: tcp 5" in text
    lines = shown(capsys, "--prometheus").out.splitlines()
    member = '{enclave="replica-0.a.b.mesh",member="replica-1.a.b.mesh"}'
    assert f"strongroom_mesh_received_bytes_total{member} 4096" in lines
    assert 'strongroom_mesh_refused_total{enclave="replica-0.a.b.mesh",why="tcp"} 5' in lines


def test_what_has_ended_or_lost_its_launcher_is_shown_no_more(told, capsys):
    told.heed("mesh-ended", STATUS)
    assert "no enclave with a mesh runs here" in shown(capsys).err
    told.heed("mesh-status", STATUS)
    [path] = told._directory.glob("*.json")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"launcher": gone.pid}))
    assert json.loads(shown(capsys, "--json").out) == {"enclaves": []}
    assert not path.exists()


def test_hosts_outside_and_services_for_outsiders_are_shown_beside_members(told, capsys):
    counts = {"connections": 1, "opened": 2, "sent": 3, "received": 4096, "refusals": {"certificate": 7}}
    host = {"host": "files.example.com", "port": 443, "tls": "enclave", "doubt": "certificate has expired"} | counts
    service = {"name": "api", "port": 8000, "endpoint": "192.0.2.7:8443"} | counts
    told.heed("mesh-status", STATUS | {"egress": [host], "published": [service]})
    text = " ".join(shown(capsys).out.split())
    for words in (
        "files.example.com:443",
        "api at 192.0.2.7:8443",
        "refused: certificate 7 (the last certificate: certificate has expired)",
    ):
        assert words in text
    lines = shown(capsys, "--prometheus").out.splitlines()
    place = '{enclave="replica-0.a.b.mesh",outside="files.example.com:443"'
    assert f"strongroom_mesh_tunnels{place}}} 1" in lines
    assert f'strongroom_mesh_refused_total{place},why="certificate"}} 7' in lines
