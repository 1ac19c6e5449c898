"""A Ray node in an enclave: what it is told, and what it says when the cluster does not come about."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from strongroom.cluster import node
from strongroom.cluster.node import Place, Settings
from strongroom.cluster.processes import start_command, variables
from strongroom.errors import EnclaveError, UsageError

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def test_the_head_and_the_others_start_ray_on_known_ports() -> None:
    head = start_command(head="10.0.0.1", own="10.0.0.1", slots=2, store_bytes=1 << 28)
    other = start_command(head="10.0.0.1", own="10.0.0.2", slots=2, store_bytes=1 << 28)
    assert {"--head", "--port=6379", "--node-ip-address=10.0.0.1", "--include-dashboard=false"} <= {*head}
    assert {"--address=10.0.0.1:6379", "--node-ip-address=10.0.0.2"} <= {*other}
    assert "--head" not in other
    ports = {word for word in head if "-port=" in word}
    assert {word for word in other if "-port=" in word} <= ports
    assert len(ports) == 8 + 1


def test_rays_own_token_and_nothing_told_outside() -> None:
    told = variables({"PATH": "/usr/bin", "KEPT": "1"}, head="10.0.0.1", token="t" * 64, patience=30)
    assert told["RAY_AUTH_MODE"] == "token"
    assert told["RAY_AUTH_TOKEN"] == "t" * 64
    assert told["RAY_USAGE_STATS_ENABLED"] == "0"
    assert told["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert told["KEPT"] == "1"
    assert told["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"


def test_a_place_comes_from_a_replicas_variables() -> None:
    assert Place.of(ALONE) == Place(0, 1, "127.0.0.1", "127.0.0.1")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"RANK": ""}, "RANK: got none, wanted 0 to 0"),
        ({"RANK": "1"}, "RANK: got 1, wanted 0 to 0"),
        ({"RANK": "-1"}, "RANK: got -1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: got 0, wanted 1 to 1000"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE"),
    ],
)
def test_variables_out_of_range_are_named(changed: dict[str, str], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Place.of(ALONE | changed)


def test_a_head_with_no_address_is_an_error() -> None:
    with pytest.raises(EnclaveError, match=r"nowhere\.invalid"):
        Place.of(ALONE | {"MASTER_ADDR": "nowhere.invalid"})


def test_a_ray_that_does_not_start_is_an_error_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> list[str]:
        return [sys.executable, "-c", "print('first'); raise SystemExit('no room for objects')"]

    monkeypatch.setattr(node, "start_command", broken)
    monkeypatch.setattr(node, "ROLL_PORT", 0)
    with pytest.raises(EnclaveError, match=r"no room for objects|does not listen on port"):
        node.run(Place.of(ALONE), Settings(["python", "job.py"], patience=1))


def test_the_command_line_says_its_errors_as_others_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "find_spec", lambda name: None)
    assert node.main(["--", "python", "job.py"]) == 3
    assert node.main([]) == 2
    said = capsys.readouterr().err
    assert "strongroom: error: ray is not installed\n    pip install 'strongroom[ray]'\n" in said
    assert "command: give the job's after --" in said


def test_a_job_runs_with_the_same_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Settings] = []

    def noted(place: Place, settings: Settings) -> int:
        given.append(settings)
        return 5

    monkeypatch.setattr(node, "find_spec", lambda name: object())
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    assert node.main(["--patience", "7", "--slots", "3", "--", "python", "job.py", "--fast"], run=noted) == 5
    assert given == [Settings(["python", "job.py", "--fast"], 7.0, 3)]
