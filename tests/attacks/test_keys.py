"""What whoever holds the disk can try on a vault's `keys` file: each attempt is refused, or changes nothing."""

import base64
import datetime as dt
import itertools
import json
import os

import pyrage
import pytest

from strongroom.crypto import derive, random_key
from strongroom.errors import (
    FormatError,
    IntegrityError,
    RollbackError,
    StrongroomError,
    TamperedError,
    WrongKeyError,
)
from strongroom.storage import MemoryDirectory
from strongroom.vault.keys import (
    KEYS,
    AgeIdentity,
    AgeRecipient,
    KeyFile,
    KeyRing,
    Passphrase,
    SourceKey,
    holders,
)

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
VAULT_KEY = os.urandom(32)
ALICE, BOB = KeyFile(os.urandom(32)), KeyFile(os.urandom(32))


class Source:
    scheme = "test"

    def __init__(self, key):
        self.key = key

    def unwrap(self, data):
        return self.key


def ring_of(*of, vault_key=VAULT_KEY):
    ring = KeyRing.create(vault_key, of[0], label="0", now=NOW)
    for index, holder in enumerate(of[1:], 1):
        ring.add(vault_key, holder, label=str(index), now=NOW)
    return ring


def edited(ring, edit):
    document = json.loads(ring.encode())
    edit(document)
    return KeyRing.decode(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


@pytest.fixture
def fast_passphrases(monkeypatch):
    """Argon2id's place is taken by HKDF, where thousands of files are tried and the cost is not what is tested."""
    monkeypatch.setattr(
        holders,
        "password_key",
        lambda password, salt, cost: derive(password, "test", context=salt + repr(cost).encode()),
    )


def test_change_any_byte(fast_passphrases):
    identity = pyrage.x25519.Identity.generate()
    source_key = random_key()
    ring = ring_of(
        ALICE,
        Passphrase("open sesame"),
        AgeRecipient(str(identity.to_public())),
        SourceKey("test", b"data", source_key),
    )
    secrets = [ALICE, Passphrase("open sesame"), AgeIdentity(str(identity)), Source(source_key)]
    data = ring.encode()
    outcomes = set()
    for at in range(len(data)):
        # One bit, and another character of base64 and of hexadecimal: else most changes would end in the parser.
        for byte in {data[at] ^ 1, ord("5"), ord("b"), ord("E")} - {data[at]}:
            changed = data[:at] + bytes([byte]) + data[at + 1 :]
            try:
                found = KeyRing.decode(changed)
            except FormatError:
                outcomes.add(FormatError)
                continue
            for secret in secrets:
                with pytest.raises((WrongKeyError, TamperedError)) as caught:
                    found.unlock(secret)
                outcomes.add(caught.type)
    assert outcomes == {FormatError, WrongKeyError, TamperedError}


def test_cut_anywhere():
    data = ring_of(ALICE).encode()
    for end in range(len(data)):
        with pytest.raises(FormatError):
            KeyRing.decode(data[:end])


SLOTS = {
    "take one away": lambda slots: slots.pop(1),
    "take all others away": lambda slots: slots.__delitem__(slice(1, None)),
    "swap two": lambda slots: slots.reverse(),
    "move the last forward": lambda slots: slots.insert(0, slots.pop()),
    "add a copy": lambda slots: slots.append(slots[1] | {"label": "copy"}),
    "add one of another ring": lambda slots: slots.append(
        json.loads(ring_of(BOB).encode())["slots"][0] | {"label": "x"}
    ),
    "give one another label": lambda slots: slots[1].update(label="Mallory"),
    "give one another date": lambda slots: slots[1].update(created="2031-01-01T00:00:00Z"),
    "swap two labels": lambda slots: (slots[0].update(label="1"), slots[1].update(label="0")),
    "swap two boxes": lambda slots: (lambda a, b: (slots[0].update(box=b), slots[1].update(box=a)))(
        slots[0]["box"], slots[1]["box"]
    ),
}


@pytest.mark.parametrize("attempt", SLOTS)
def test_edit_the_slots_without_the_vault_key(attempt):
    ring = ring_of(ALICE, BOB, KeyFile(os.urandom(32)))
    found = edited(ring, lambda document: SLOTS[attempt](document["slots"]))
    with pytest.raises(TamperedError):
        found.unlock(ALICE)
    with pytest.raises(TamperedError):
        found.authenticate(VAULT_KEY)


@pytest.mark.parametrize("edit", ["generation", "slots"])
@pytest.mark.parametrize("change", ["add", "remove", "rotate"])
def test_have_an_honest_change_authenticate_an_edited_file(change, edit):
    """Else the attacker's edit would carry a good code after the next change by somebody who has the key."""
    directory, ring = MemoryDirectory(), ring_of(ALICE)
    ring.save(directory)
    ring.add(VAULT_KEY, BOB, label="Bob", now=NOW)
    ring.save(directory)
    ring.add(VAULT_KEY, KeyFile(bytes(32)), label="Carol", now=NOW)
    found = edited(
        ring,
        (lambda document: document["slots"].pop(1))
        if edit == "slots"
        else (lambda document: document.update(generation=1, previous="")),
    )
    before = found.encode()
    with pytest.raises(TamperedError):
        if change == "add":
            found.add(VAULT_KEY, KeyFile(random_key()), label="Dave", now=NOW)
        elif change == "remove":
            found.remove(VAULT_KEY, 0)
        else:
            found.rotate(ALICE, KeyFile(random_key()), now=NOW)
    assert found.encode() == before


@pytest.mark.parametrize("member", ["mac", "commitment", "id"])
def test_mix_two_files_of_one_vault_key(member):
    one, two = ring_of(ALICE), json.loads(ring_of(ALICE).encode())
    with pytest.raises(IntegrityError):
        edited(one, lambda document: document.update({member: two[member]})).unlock(ALICE)


def test_put_another_vaults_file_in_the_place():
    other = ring_of(ALICE, vault_key=random_key())
    with pytest.raises(WrongKeyError, match="another vault key"):
        other.authenticate(VAULT_KEY)
    # Alice holds a slot in both; she gets the other vault's key, which opens nothing of this one.
    assert other.unlock(ALICE) != VAULT_KEY
    remembered = ring_of(ALICE).version
    with pytest.raises(RollbackError):
        other.check(remembered)


def test_replace_the_vault_key_in_a_slot_as_its_own_holder():
    """Bob has his slot key. He wraps a key that he chose for himself; whoever opens his slot notices."""
    from strongroom.vault.keys.slots import Document

    ring = ring_of(ALICE, BOB)
    document = Document.decode(ring.encode())
    forged = document.slots[1].wrap(document.ring_id, BOB._key, random_key())
    found = edited(ring, lambda members: members["slots"].__setitem__(1, forged.members()))
    with pytest.raises(TamperedError, match="wraps another vault key"):
        found.unlock(BOB)
    with pytest.raises(TamperedError):
        found.unlock(ALICE)


def test_one_box_for_two_keys(fast_passphrases):
    """A ciphertext of AES-GCM that opens under many keys would try many passphrases at once. The commitment stands in
    the way: it is checked first, and is of one key.
    """
    ring = ring_of(Passphrase("a"))
    document = json.loads(ring.encode())
    slot_salt = base64.b64decode(document["slots"][0]["salt"])
    commitments = {
        derive(holders.password_key(text, slot_salt, holders.DEFAULT_COST), "strongroom/keys/v0/slot-commitment",
               context=bytes.fromhex(document["id"]) + slot_salt)
        for text in (b"a", b"b", b"c")
    }  # fmt: skip
    assert len(commitments) == 3
    # Whatever the box: with another passphrase nothing is decrypted.
    for box in (bytes(72), os.urandom(72)):
        found = edited(ring, lambda document, box=box: document["slots"][0].update(box=base64.b64encode(box).decode()))
        with pytest.raises(WrongKeyError):
            found.unlock(Passphrase("b"))
        with pytest.raises(TamperedError):
            found.unlock(Passphrase("a"))


def test_weaken_or_exhaust_by_the_costs_in_the_file(monkeypatch):
    monkeypatch.setattr(holders, "password_key", lambda *_: bytes(32))
    ring = ring_of(Passphrase("a"))

    def derived(*_):
        raise AssertionError("something was derived")

    monkeypatch.setattr(holders, "password_key", derived)
    for memory, passes, lanes in itertools.product(
        (8, 19 << 10, 1 << 20, 1 << 21, 1 << 32), (1, 4, 16, 1 << 20), (1, 1 << 24)
    ):
        costs = {"memory": memory, "passes": passes, "lanes": lanes}
        allowed = 19 << 10 <= memory <= 1 << 20 and 2 <= passes <= 16 and memory * passes <= 1 << 22 and lanes <= 16
        if not allowed:
            with pytest.raises(FormatError):
                edited(ring, lambda document, costs=costs: document["slots"][0].update(costs))


def test_other_costs_within_the_bounds_give_another_key():
    ring = edited(ring_of(Passphrase("a")), lambda document: document["slots"][0].update(memory=19 << 10, passes=2))
    with pytest.raises(WrongKeyError):
        ring.unlock(Passphrase("a"))


def test_a_hostile_age_file():
    """What somebody encrypts to a recipient, who is public, is no key of this vault."""
    identity = pyrage.x25519.Identity.generate()
    recipient = identity.to_public()
    ring = ring_of(AgeRecipient(str(recipient)))
    for content, expected in ((b"", TamperedError), (bytes(33), TamperedError), (bytes(32), WrongKeyError)):
        stanza = base64.b64encode(pyrage.encrypt(content, [recipient])).decode()
        found = edited(ring, lambda document, stanza=stanza: document["slots"][0].update(age=stanza))
        with pytest.raises(expected):
            found.unlock(AgeIdentity(str(identity)))
    # An age file under a passphrase is not even tried, whatever work it asks for.
    stanza = base64.b64encode(pyrage.passphrase.encrypt(bytes(32), "x")).decode()
    found = edited(ring, lambda document: document["slots"][0].update(age=stanza))
    with pytest.raises(WrongKeyError):
        found.unlock(AgeIdentity(str(identity)))


def test_put_the_old_file_back():
    """Without a memory of the version, a removed holder's slot works again: the specification says so."""
    directory, ring = MemoryDirectory(), ring_of(ALICE, BOB)
    ring.save(directory)
    old = bytes(directory.files[KEYS].data)
    ring.remove(VAULT_KEY, 1)
    ring.save(directory)
    remembered = ring.version
    ring.rotate(ALICE, KeyFile(random_key()), now=NOW)
    ring.save(directory)

    found = KeyRing.load(MemoryDirectory({KEYS: old}))
    assert found.unlock(BOB) == VAULT_KEY
    with pytest.raises(RollbackError, match="generation 1, wanted 2"):
        found.check(remembered)
    with pytest.raises(RollbackError, match="generation 1, wanted 3"):
        found.check(ring.version)


def test_skip_ahead_of_what_is_remembered():
    """A version of a history that was given up is newer by its number, and refused all the same."""
    directory, ring = MemoryDirectory(), ring_of(ALICE)
    ring.save(directory)
    remembered = ring.version
    for label in ("Bob", "Carol"):
        ring.add(VAULT_KEY, KeyFile(random_key()), label=label, now=NOW)
        ring.save(directory)
    found = KeyRing.load(directory)
    found.unlock(ALICE)
    with pytest.raises(RollbackError):
        found.check(remembered)


def test_refusals_tell_nothing_of_how_near_a_secret_came():
    """The same words for a wrong key, whichever slots there are and whatever is in them."""
    said = set()
    for others in ([BOB], [KeyFile(BOB._key[:-1] + bytes([BOB._key[-1] ^ 1]))]):
        with pytest.raises(StrongroomError) as caught:
            ring_of(*others).unlock(ALICE)
        said.add((caught.type, caught.value.message, caught.value.hint))
    assert len(said) == 1
