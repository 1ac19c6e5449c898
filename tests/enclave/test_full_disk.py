"""The disk of a vault is full when the program has ended: the run says what is lost, and the vault is as it was."""

import signal
import subprocess
import sys

import pytest

from strongroom.errors import EnclaveError
from tests.enclave.conftest import OUT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="enclaves are Linux's")


@pytest.fixture
def small(tmp_path):
    """A disk of 2 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_results_that_do_not_fit_are_named_and_the_vault_is_as_it_was(world, small):
    sealed = world.seal("small/out", before=b"kept")
    source = "import os; os.remove('/out/before'); open('/out/new', 'wb').write(os.urandom(5 << 20))"
    job = world.job(source, rules=(OUT,), vaults={"out": sealed})
    with pytest.raises(EnclaveError) as caught:
        job.run()
    assert caught.value.message == (
        "vault out: no space left on device: what the program left for it, 5,242,880 bytes, did not fit; "
        "no result of this run was sealed"
    )
    assert caught.value.hint == "make room where the vault lies, and run it again"
    assert "sealed" not in [name for name, _ in job.events]
    with sealed.open() as opened:
        assert (opened.files(), opened.read_bytes("before")) == (["before"], b"kept")


KEEPS = "import os; os.remove('/out/before'); open('/out/new', 'wb').write(b'new' * 400_000)"


def waiting(world, small):
    """A job whose results have no room beside a file of the host's, and that file."""
    sealed = world.seal("small/out", before=b"kept")
    filler = small / "filler"
    filler.write_bytes(bytes(1_400_000))
    return world.job(KEEPS, rules=(OUT,), vaults={"out": sealed}), sealed, filler


def when_it_waits(job, act):
    """Have something done once the enclave says that it waits for room."""
    told = job.launch

    def launch(**options):
        enclave = told(**options)
        heard = enclave._host.on_event

        def on_event(name, detail):
            heard(name, detail)
            if name == "notice" and "wait in memory" in detail["text"]:
                act(enclave)

        enclave._host.on_event = on_event
        return enclave

    job.launch = launch


def test_results_wait_until_there_is_room(world, small):
    job, sealed, filler = waiting(world, small)
    when_it_waits(job, lambda enclave: filler.unlink())
    assert job.run(knobs={"wait": True})[0] == 0
    notices = [detail["text"] for name, detail in job.events if name == "notice" and "wait in memory" in detail["text"]]
    assert notices == [
        "vault out: no space left on device where it lies: up to 1,200,000 bytes wait in memory until there is; "
        "end the run (Ctrl-C, SIGTERM) to give them up"
    ]
    with world.owner() as client:
        sealed.anchor.advance(sealed.anchor.read(), client.anchor(job.policy.name, "out").read())
    with sealed.open() as opened:
        assert opened.read_bytes("new") == b"new" * 400_000
        assert "before" not in opened.files()


def test_a_signal_gives_waiting_results_up(world, small):
    job, sealed, _ = waiting(world, small)
    when_it_waits(job, lambda enclave: enclave.signal(signal.SIGTERM))
    with pytest.raises(EnclaveError, match="did not fit; no result of this run was sealed"):
        job.run(knobs={"wait": True})
    with sealed.open() as opened:
        assert opened.files() == ["before"]
