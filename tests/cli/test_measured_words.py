"""`strongroom measure` says the value that `strongroom run` with the same words has."""

import argparse
import json
import sys
from pathlib import Path

import pytest

from strongroom.cas.client.address import CasAddress
from strongroom.cli.main import main
from strongroom.cli.run import verb as run_verb
from strongroom.cli.run import words as run_words
from strongroom.cli.run.vaults import make_vault
from strongroom.cli.workspace import Home, SealedVault
from strongroom.enclave import sandbox
from strongroom.enclave.measure import Environment, measure
from strongroom.errors import EnclaveError
from tests.enclave import small

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="enclaves are launched on Linux")

# Each word of `add_measured`, and one way to say it.
WORDS = {
    "data": ["--data", "data.vault:/in"],
    "out": ["--out", "other.vault:/results"],
    "mirror": ["--mirror", "mirror"],
    "include": ["--include", "beside.txt"],
    "tool": ["--tool", "env"],
    "env": ["--env", "DEPTH=3"],
    "log": ["--log", "log.vault"],
    "quiet": ["--log", "log.vault", "--quiet"],
}
FREE = ["--memory", "512M", "--cpus", "2"]


def dests(add):
    parser = argparse.ArgumentParser()
    add(parser)
    return {action.dest for action in parser._actions} - {"help"}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A small environment in place of this one, a home with a CAS, vaults, and a program."""
    if sandbox.bubblewrap() is None:
        pytest.skip("bubblewrap does not work here: --log takes a sandbox")
    directory = tmp_path_factory.mktemp("work")
    here = small.environment(directory / "env")
    for name in ("job.py", "beside.txt"):
        small.write(directory / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "current", classmethod(lambda cls: here))
        patch.setenv("STRONGROOM_HOME", str(directory / "home"))
        patch.chdir(directory)
        for name in ("data", "out", "other", "log"):
            make_vault(SealedVault.at(Path(f"{name}.vault")))
        home = Home.open()
        with home.cas() as cas:
            patch.setattr(Home, "cas", lambda self: CasOf(cas))
            yield directory


class CasOf:
    """A CAS that runs already."""

    def __init__(self, address: CasAddress) -> None:
        self.address = address

    def __enter__(self) -> CasAddress:
        return self.address

    def __exit__(self, *_: object) -> None:
        return None


def launched(words, monkeypatch):
    """What `strongroom run` would launch is measured as; nothing is launched."""
    values = []

    def caught(config, files, **options):
        values.append(measure(config, files).value)
        raise EnclaveError("caught")

    monkeypatch.setattr(run_verb, "launch", caught)
    assert main(["run", *words, "--", "python", "job.py"]) == EnclaveError.exit_code
    return values[0]


def told(words, capfd):
    capfd.readouterr()
    assert main(["measure", "--json", *words, "--", "python", "job.py"]) == 0
    return json.loads(capfd.readouterr().out)["measurement"]


def test_every_word_that_is_measured(work, monkeypatch, capfd):
    assert dests(run_words.add_measured) == set(WORDS)
    values = {}
    for name, words in {"none": [], **WORDS}.items():
        values[name] = launched(words, monkeypatch)
        assert told(words, capfd) == values[name], name
    assert len(set(values.values())) == len(values)  # each has a say
    assert told([*WORDS["data"], *FREE], capfd) == values["data"]
    assert set(FREE[::2]) <= {f"--{dest}" for dest in dests(run_words.add_unmeasured)}


def test_what_run_would_make_has_a_key_that_nobody_knows_yet(work, capfd):
    assert main(["measure", "--out", "new.vault", "--", "python", "job.py"]) == 2
    assert "new.vault: is not there, and its key has a say" in capfd.readouterr().err
    named = ["--policy-name", "acme/job", "--json"]
    assert told(["--out", "new.vault", *named], capfd) != told(named, capfd)
    assert not Path("new.vault").exists()


@pytest.mark.parametrize(
    "words", [["--quiet"], ["--mirror", "m", "--image", "x"], ["--memory", "1"], ["--replica", "0"]]
)
def test_words_that_run_refuses_are_refused(work, words, capfd):
    for verb in ("run", "measure"):
        assert main([verb, *words, "--", "python", "job.py"]) == 2
        assert words[0] in capfd.readouterr().err
