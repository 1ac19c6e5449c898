"""The CAS as a vault's key slot: made, opened, removed and replaced; and what then still opens."""

from __future__ import annotations

import datetime as dt

import pytest

from strongroom import vault
from strongroom.cas.client.anchor import policy_path
from strongroom.cas.client.slots import SCHEME, CasSlot, keep_slot, slot_of
from strongroom.errors import ConflictError, FormatError, RollbackError, UnauthorizedError, WrongKeyError
from strongroom.sealed import MemoryAnchor
from strongroom.vault.access import changing_ring, create_ring, rekey
from strongroom.vault.keys import KEYS, KeyFile, KeyRing, SourceKey
from tests.cas.world import world_in

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KEY, OTHER = b"k" * 32, b"o" * 32


class Sealed:
    """A vault with a key file's slot and one of the CAS."""

    def __init__(self, world, path):
        self.world, self.path, self.anchor = world, path, MemoryAnchor()
        with vault.open(path, "x", key=KEY, anchor=self.anchor) as opened:
            opened.write_bytes("a", b"content")
            ring = create_ring(opened, KeyFile(OTHER), label="me", now=NOW)
        with self.changing() as (opened, ring):
            ring.add(opened._key, self.holder(), label="cas", now=NOW)

    def holder(self):
        self.data, key = keep_slot(self.world.client, self.world.name)
        return SourceKey(SCHEME, self.data, key)

    def changing(self):
        from contextlib import contextmanager

        @contextmanager
        def change():
            with vault.open(self.path, "r+", key=KEY, anchor=self.anchor) as opened, changing_ring(opened) as ring:
                yield opened, ring

        return change()

    def read(self, keeper=None, anchor=None):
        key = CasSlot(keeper or self.world.client, self.world.name)
        with vault.open(self.path, key=key, anchor=anchor or self.anchor) as opened:
            return opened.read_bytes("a")


@pytest.fixture
def sealed(cas, tmp_path):
    with world_in(cas, more="") as world:
        yield Sealed(world, tmp_path / "v.vault")


def test_an_administrator_and_an_attested_enclave_open_it(sealed):
    assert sealed.read() == b"content"
    with sealed.world.session() as session:
        session.attest()
        assert sealed.read(session) == b"content"
    assert sealed.world.events().count("slot-opened") == 2
    assert not [e for e in sealed.world.client.log() if KEY.hex() in str(e)]


def test_nobody_else_opens_it(cas, sealed):
    with cas.owner() as stranger, pytest.raises(UnauthorizedError):
        sealed.read(stranger)
    with world_in(cas, more="") as other, other.session() as session:
        session.attest()
        with pytest.raises(UnauthorizedError):
            sealed.read(session)
        with pytest.raises(WrongKeyError):
            CasSlot(other.client, other.name).unwrap(sealed.data)


def test_a_slot_that_was_removed_does_not_open_not_even_by_an_old_copy(sealed):
    old = (sealed.path / KEYS).read_bytes()
    with sealed.changing() as (opened, ring):
        ring.remove(opened._key, "cas")
    with pytest.raises(WrongKeyError):
        sealed.read()
    # The old file has the slot yet; the CAS has its key until it is told to forget it.
    assert KeyRing.decode(old).unlock(CasSlot(sealed.world.client, sealed.world.name)) == KEY
    assert sealed.world.client.remove_slot_key(*slot_of(sealed.data))
    assert not sealed.world.client.remove_slot_key(*slot_of(sealed.data))
    with pytest.raises(WrongKeyError, match="opens no slot"):
        KeyRing.decode(old).unlock(CasSlot(sealed.world.client, sealed.world.name))
    (sealed.path / KEYS).write_bytes(old)
    with pytest.raises(RollbackError), vault.open(sealed.path, key=KeyFile(OTHER), anchor=sealed.anchor):
        pass


def test_after_a_rotation_the_old_slot_gives_the_old_vault_key_until_it_is_forgotten(sealed):
    old, data = (sealed.path / KEYS).read_bytes(), sealed.data
    with sealed.changing() as (_, ring):
        ring.rotate(CasSlot(sealed.world.client, sealed.world.name), sealed.holder(), now=NOW)
    assert sealed.read() == b"content"
    assert KeyRing.decode(old).unlock(CasSlot(sealed.world.client, sealed.world.name)) == KEY
    sealed.world.client.remove_slot_key(*slot_of(data))
    with pytest.raises(WrongKeyError):
        KeyRing.decode(old).unlock(CasSlot(sealed.world.client, sealed.world.name))
    assert sealed.read() == b"content"


def test_after_a_new_vault_key_an_old_slot_opens_nothing_that_is_there_now(sealed):
    old = (sealed.path / KEYS).read_bytes()
    with vault.open(sealed.path, "r+", key=KEY, anchor=sealed.anchor) as opened:
        rekey(opened, OTHER)
    (sealed.path / KEYS).write_bytes(old)
    with pytest.raises((WrongKeyError, RollbackError)):
        sealed.read()
    with vault.open(sealed.path, key=OTHER, anchor=sealed.anchor) as opened:
        assert opened.read_bytes("a") == b"content"


def test_a_slot_s_key_never_changes_and_has_its_size(sealed):
    policy, slot = slot_of(sealed.data)
    with pytest.raises(ConflictError, match="keeps another key"):
        sealed.world.client.put_slot_key(policy, slot, bytes(32))
    with pytest.raises(FormatError, match="wanted 32"):
        sealed.world.client.put_slot_key(policy, "ab" * 16, bytes(16))
    with pytest.raises(FormatError, match="hexadecimal"):
        sealed.world.client.slot_key(policy, "vault:data")
    answer = sealed.world.client._http.request("GET", policy_path(policy, "slots", "../secrets/token"))
    assert answer.status in (400, 404)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"policy":"a/b","slot":"x"}', b'{"policy":1,"slot":"' + b"a" * 32 + b'"}']
)
def test_data_of_another_form_opens_nothing(sealed, data):
    with pytest.raises(WrongKeyError):
        CasSlot(sealed.world.client, sealed.world.name).unwrap(data)
