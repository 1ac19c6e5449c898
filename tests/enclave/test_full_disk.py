"""The disk of a vault is full when the program has ended: the run says what is lost, and the vault is as it was."""

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
