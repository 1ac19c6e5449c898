"""User ids for the enclaves that root launches."""

import os

import pytest

from strongroom.enclave.users import allocate, is_enclave_user
from strongroom.errors import EnclaveError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="enclaves are launched on Linux")


def test_no_two_living_enclaves_have_the_same(tmp_path):
    place = tmp_path / "users"
    one, two = allocate(place), allocate(place)
    assert one.id != two.id
    assert is_enclave_user(one.id)
    one.close()
    three = allocate(place)
    assert three.id == one.id
    two.close()
    three.close()


def test_an_id_is_held_while_a_process_of_the_enclave_lives(tmp_path):
    held = allocate(tmp_path / "users")
    inherited = os.dup(held.descriptor)  # as a process that was launched with it has it
    held.close()
    other = allocate(tmp_path / "users")
    assert other.id != held.id
    other.close()
    os.close(inherited)


def test_a_directory_that_others_can_write_to_is_refused(tmp_path):
    place = tmp_path / "users"
    place.mkdir()
    place.chmod(0o777)
    with pytest.raises(EnclaveError, match="only this user can write to"):
        allocate(place)


@pytest.mark.parametrize("value", [0, 1000, 65534, True, "2000000000", None, 1 << 32])
def test_the_host_can_name_no_other_id(value):
    assert not is_enclave_user(value)
