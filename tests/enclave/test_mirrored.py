"""Between boot and a script under a mirror: the key, the anchor, and what boot makes of what it is told."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from typing import Any

import pytest

from strongroom import mirror
from strongroom.enclave.mirrored import Keeper, _Asking, python_words
from strongroom.errors import EnclaveError, RollbackError, StrongroomError, UsageError
from strongroom.sealed import MemoryAnchor

KEY = bytes(range(32))


@dataclass
class Booted:
    """What a keeper asks of a booted enclave."""

    place: str
    access: str = "mirror"
    events: list[dict[str, Any]] = field(default_factory=list)
    remembered: MemoryAnchor = field(default_factory=MemoryAnchor)
    sandboxed = False

    @property
    def provisions(self):
        return self

    control = session = provisions

    @property
    def layout(self):
        return {"vaults": {"run-mirror": self.place}, "every": "7"}

    @property
    def vault_keys(self):
        return {"run-mirror": KEY}

    @property
    def vault_access(self):
        return {"run-mirror": self.access}

    def anchor(self, name: str) -> MemoryAnchor:
        assert name == "run-mirror"
        return self.remembered

    def event(self, event: str, **detail: Any) -> None:
        self.events.append({"event": event, **detail})


@pytest.fixture
def booted(tmp_path):
    return Booted(str(tmp_path / "run"))


def asking(keeper: Keeper) -> _Asking:
    """The script's end, as its process inherits it."""
    return _Asking(os.dup(keeper.descriptor))


def close(boot: _Asking) -> None:
    boot._connection.close()


def test_the_anchor_is_the_cas_s_and_a_mirror_rolled_back_is_refused(booted, tmp_path):
    (tmp_path / "run").mkdir()
    with Keeper(booted, "run-mirror") as keeper:
        boot = asking(keeper)
        assert boot.ask("open") == {
            "key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
            "place": booted.place,
            "every": "7",
        }
        with mirror.open(tmp_path / "run" / "mirror", key=KEY, anchor=boot) as opened:
            opened.commit(1, {"step": 1})
            shutil.copytree(tmp_path / "run", tmp_path / "old")
            opened.commit(2, {"step": 2})
            assert booted.remembered.read() == opened.root
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(RollbackError):
            mirror.open(tmp_path / "old" / "mirror", key=KEY, anchor=boot)
        with pytest.raises(RollbackError, match="is missing, and its anchor holds a commit"):
            mirror.open(tmp_path / "mirror", key=KEY, anchor=boot)
        close(boot)


def test_what_is_written_before_the_script_has_caught_up_is_not_sealed(booted):
    with Keeper(booted, "run-mirror") as keeper:
        boot = asking(keeper)
        boot.told("resumes", {"step": 40})
        close(boot)
        with pytest.raises(EnclaveError, match="ended before it had come to step 40 again"):
            keeper.check()
    with Keeper(booted, "run-mirror") as keeper:
        boot = asking(keeper)
        boot.told("resumes", {"step": 40})
        boot.told("resumed", {"step": 40})
        close(boot)
        keeper.check()
    assert booted.events[0] == {"event": "mirror", "what": "resumes", "step": 40}


def test_what_failed_before_the_script_is_the_run_s_error(booted):
    with Keeper(booted, "run-mirror") as keeper:
        boot = asking(keeper)
        boot.ask("failed", error=RollbackError("mirror: is older").to_wire())
        close(boot)
        with pytest.raises(RollbackError, match="mirror: is older"):
            keeper.check()


def test_requests_of_another_form_are_refused(booted):
    with Keeper(booted, "run-mirror") as keeper:
        boot = asking(keeper)
        for op, arguments in (("key", {}), ("advance", {}), ("advance", {"old": 1, "new": 2}), ("told", {"what": 1})):
            with pytest.raises(StrongroomError):
                boot.ask(op, **arguments)
        assert boot.read() is None
        close(boot)
        keeper.check()


def test_a_vault_s_key_is_not_given_for_a_mirror(booted):
    booted.access = "read-write"
    with pytest.raises(EnclaveError, match="run-mirror: the policy gives no key for it"):
        Keeper(booted, "run-mirror")


@pytest.mark.parametrize(
    ("words", "options", "program"),
    [
        (["train.py", "-x"], [], ["train.py", "-x"]),
        (["-I", "-X", "dev", "-W", "error", "-u", "train.py"], ["-I", "-X", "dev", "-W", "error", "-u"], ["train.py"]),
        (["-m", "package.train", "5"], [], ["-m", "package.train", "5"]),
    ],
)
def test_where_a_script_begins(words, options, program):
    assert python_words(words) == (options, program)


@pytest.mark.parametrize("words", [[], ["-c", "pass"], ["-"], ["-u"], ["-X"]])
def test_no_script(words):
    with pytest.raises(UsageError, match="command: holds no script"):
        python_words(words)
