"""What system calls do on a mount, each held against the same call on an ordinary directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix import cases
from tests.posix.server import ROOT, served

_NOBODY = 65534
_USERS = {"root": 0, "nobody": _NOBODY}


@pytest.fixture(scope="module")
def logs(fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], dict[str, list[str]]]]:
    """The log of every script, by user and place."""
    base = tmp_path_factory.mktemp("posix")
    for name in ("vault", "mount", "native"):
        (base / name).mkdir()
    for above in (base, *base.parents):  # nobody shall come through
        if above.stat().st_uid == os.getuid() and above != Path("/tmp"):
            above.chmod(above.stat().st_mode | 0o011)
    found = {}
    users = _USERS if os.getuid() == 0 else {"user": os.getuid()}
    with served(base / "vault", base / "mount", *(["allow-other"] if os.getuid() == 0 else [])):
        for user, uid in users.items():
            for place in ("mount", "native"):
                own = base / place / user
                own.mkdir()
                if os.getuid() == 0:
                    os.chown(own, uid, uid)
                program = [sys.executable, "-m", "tests.posix.cases", str(own), str(0 if uid == os.getuid() else uid)]
                # The interpreter and the scripts may lie where nobody else can go: they run before the change of user.
                run = subprocess.run(program, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
                found[user, place] = json.loads(run.stdout)
        yield found


@pytest.mark.parametrize("user", list(_USERS) if os.getuid() == 0 else ["user"])
@pytest.mark.parametrize("name", list(cases.CASES))
def test_as_on_an_ordinary_directory(logs, name: str, user: str) -> None:
    assert logs[user, "mount"][name] == logs[user, "native"][name]
