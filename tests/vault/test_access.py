"""Opening vaults by their key slots, and a `keys` file that the vault remembers."""

import datetime as dt

import pytest

from strongroom import vault
from strongroom.crypto import random_key
from strongroom.errors import (
    ConflictError,
    FormatError,
    RollbackError,
    StrongroomError,
    TamperedError,
    UsageError,
    WrongKeyError,
)
from strongroom.sealed import NO_FRESHNESS, MemoryAnchor
from strongroom.storage import MemoryDirectory
from strongroom.vault.access import changing_ring, create_ring, rekey
from strongroom.vault.keys import AgeIdentity, AgeRecipient, KeyFile, KeyRing, Passphrase, PasswordCost, SourceKey

KEY = bytes(range(32))
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
CHEAP = PasswordCost(memory=19 << 10, passes=2, lanes=1)


@pytest.fixture
def anchor():
    return MemoryAnchor()


@pytest.fixture
def directory(anchor):
    directory = MemoryDirectory()
    with vault.open(directory, "x", key=KEY, anchor=anchor) as opened:
        opened.write_bytes("a", b"1")
    return directory


def add(directory, anchor, holder, label, key=KEY):
    with vault.open(directory, "r+", key=key, anchor=anchor) as opened:
        with changing_ring(opened) as ring:
            if ring is not None:
                ring.add(opened._key, holder, label=label, now=NOW)
        if ring is None:
            create_ring(opened, holder, label=label, now=NOW)


def opens(directory, anchor, key):
    with vault.open(directory, key=key, anchor=anchor) as opened:
        return opened.read_bytes("a") == b"1"


def test_each_kind_of_key_opens(directory, anchor):
    pyrage = pytest.importorskip("pyrage")
    identity = pyrage.x25519.Identity.generate()
    mine, slot_key = random_key(), random_key()
    add(directory, anchor, KeyFile(mine), "mine")
    add(directory, anchor, Passphrase("open sesame", cost=CHEAP), "me")
    add(directory, anchor, AgeRecipient(str(identity.to_public())), "age")
    add(directory, anchor, SourceKey("test", b"which", slot_key), "source")

    class Source:
        scheme = "test"

        def unwrap(self, data):
            assert data == b"which"
            return slot_key

    for key in (KEY, KeyFile(KEY), KeyFile(mine), Passphrase("open sesame"), AgeIdentity(str(identity)), Source()):
        assert opens(directory, anchor, key)
    for key in (random_key(), KeyFile(random_key()), Passphrase("open barley")):
        with pytest.raises(WrongKeyError):
            opens(directory, anchor, key)


def test_without_key_slots_a_key_file_holds_the_vault_key(directory, anchor):
    assert opens(directory, anchor, KeyFile(KEY))
    with pytest.raises(UsageError, match="the vault has none"):
        opens(directory, anchor, Passphrase("x"))
    with pytest.raises(UsageError, match="31 bytes, wanted 32"):
        opens(directory, anchor, KEY[1:])
    with pytest.raises(UsageError, match="makes a slot"):
        opens(directory, anchor, SourceKey("test", b"", KEY))


@pytest.mark.parametrize("kind", ["passphrase", "source"])
def test_a_new_vault_for_a_holder_has_a_random_key_and_a_slot(kind, anchor):
    directory = MemoryDirectory()
    key = random_key()
    holder = Passphrase("open sesame", cost=CHEAP) if kind == "passphrase" else SourceKey("test", b"", key)

    class Source:
        scheme = "test"

        def unwrap(self, data):
            return key

    with vault.open(directory, "x", key=holder, anchor=anchor) as opened:
        opened.write_bytes("a", b"1")
    assert opens(directory, anchor, holder if kind == "passphrase" else Source())
    assert [slot.kind for slot in KeyRing.load(directory).slots] == [kind]
    with pytest.raises(WrongKeyError):
        opens(directory, anchor, key)
    with pytest.raises(UsageError, match="opens a slot, wanted what makes one"):
        vault.open(MemoryDirectory(), "x", key=Source(), anchor=anchor)


def test_a_keys_file_that_was_put_back_is_refused(directory, anchor):
    mine, theirs = random_key(), random_key()
    add(directory, anchor, KeyFile(mine), "mine")
    add(directory, anchor, KeyFile(theirs), "theirs")
    old = bytes(directory.files["keys"].data)
    with vault.open(directory, "r+", key=KeyFile(mine), anchor=anchor) as opened, changing_ring(opened) as ring:
        ring.remove(opened._key, "theirs")
    with pytest.raises(WrongKeyError):
        opens(directory, anchor, KeyFile(theirs))
    directory.files["keys"].data[:] = old
    for key in (theirs, mine, KEY):
        with pytest.raises(RollbackError, match="keys file: generation 2, wanted 3"):
            opens(directory, anchor, KeyFile(key))
    assert opens(directory, anchor, KEY)  # the vault key itself asks no slot


def test_a_foreign_keys_file_opens_nothing(directory, anchor):
    add(directory, anchor, KeyFile(KEY[::-1]), "mine")
    other = KeyRing.create(random_key(), KeyFile(KEY[::-1]), label="mine", now=NOW)
    directory.files["keys"].data[:] = other.encode()
    with pytest.raises(WrongKeyError):
        opens(directory, anchor, KeyFile(KEY[::-1]))
    with (
        pytest.raises(TamperedError, match="another vault's"),
        vault.open(directory, "r+", key=KEY, anchor=anchor) as opened,
        changing_ring(opened),
    ):
        pass


def test_a_spoiled_keys_file_keeps_slots_out_and_not_the_vault_key(directory, anchor):
    mine = random_key()
    add(directory, anchor, KeyFile(mine), "mine")
    directory.files["keys"].data[10] ^= 1
    with pytest.raises((FormatError, TamperedError)):
        opens(directory, anchor, KeyFile(mine))
    assert opens(directory, anchor, KEY)


def test_a_crash_between_saving_and_remembering_is_mended_by_the_next_writer(directory, anchor):
    mine = random_key()
    add(directory, anchor, KeyFile(mine), "mine")
    ring = KeyRing.load(directory)
    ring.unlock(KeyFile(mine))
    ring.add(KEY, KeyFile(random_key()), label="new", now=NOW)
    ring.save(directory)  # and the program dies here
    assert opens(directory, anchor, KeyFile(mine))
    before = anchor.read().sequence
    with vault.open(directory, "r+", key=KeyFile(mine), anchor=anchor):
        pass
    assert anchor.read().sequence == before + 1
    add(directory, anchor, KeyFile(random_key()), "newer", key=KeyFile(mine))
    assert [slot.label for slot in KeyRing.load(directory).slots] == ["mine", "new", "newer"]


def test_who_changes_slots_starts_from_what_is_there(directory, anchor):
    add(directory, anchor, KeyFile(random_key()), "one")
    with (
        pytest.raises(ConflictError),
        vault.open(directory, "r+", key=KEY, anchor=anchor) as opened,
        changing_ring(opened) as ring,
    ):
        add(directory, anchor, KeyFile(random_key()), "two")
        ring.add(opened._key, KeyFile(random_key()), label="three", now=NOW)
    assert [slot.label for slot in KeyRing.load(directory).slots] == ["one", "two"]


def test_an_exception_changes_no_slots(directory, anchor):
    add(directory, anchor, KeyFile(random_key()), "one")
    with (
        pytest.raises(StrongroomError, match="another slot has it"),
        vault.open(directory, "r+", key=KEY, anchor=anchor) as opened,
        changing_ring(opened) as ring,
    ):
        ring.add(opened._key, KeyFile(random_key()), label="one", now=NOW)
    assert len(KeyRing.load(directory).slots) == 1


def test_a_new_vault_key_ends_the_slots(directory, anchor):
    mine, new = random_key(), random_key()
    add(directory, anchor, KeyFile(mine), "mine")
    old_file = bytes(directory.files["keys"].data)
    with vault.open(directory, "r+", key=KeyFile(mine), anchor=anchor) as opened:
        rekey(opened, new)
    assert "keys" not in directory.files
    assert opens(directory, anchor, new)
    for key in (KEY, KeyFile(mine), KeyFile(KEY)):
        with pytest.raises(WrongKeyError):
            opens(directory, anchor, key)
    add(directory, anchor, KeyFile(mine), "mine", key=new)
    assert opens(directory, anchor, KeyFile(mine))
    directory.files["keys"].data[:] = old_file  # as a crash before the end of the slots leaves it
    assert opens(directory, anchor, KeyFile(new))
    with pytest.raises(WrongKeyError):
        opens(directory, anchor, KeyFile(mine))


def test_without_freshness_an_old_keys_file_comes_with_its_old_vault(directory, anchor):
    mine = random_key()
    add(directory, anchor, KeyFile(mine), "mine")
    old = {name: bytes(file.data) for name, file in directory.files.items()}
    with vault.open(directory, "r+", key=KEY, anchor=anchor) as opened, changing_ring(opened) as ring:
        ring.rotate(KeyFile(mine), KeyFile(random_key()), now=NOW)
    before = MemoryDirectory(old)
    assert opens(before, NO_FRESHNESS, KeyFile(mine))
    with pytest.raises(RollbackError):
        opens(before, anchor, KeyFile(mine))
