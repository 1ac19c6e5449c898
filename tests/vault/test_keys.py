"""Key slots: each kind there and back, who is refused, what changing them does, and crashes while saving."""

import base64
import contextlib
import dataclasses
import datetime as dt
import getpass
import hashlib
import hmac
import json
import os
import random
import subprocess
import sys
import unicodedata

import pyrage
import pytest

from strongroom.crypto import BlockCipher, derive
from strongroom.crypto.password import MIN_MEMORY, MIN_PASSES, password_key
from strongroom.errors import (
    ConflictError,
    FormatError,
    MissingDependencyError,
    RollbackError,
    TamperedError,
    UsageError,
    WrongKeyError,
)
from strongroom.sealed import create_key
from strongroom.storage import LocalDirectory, MemoryDirectory
from strongroom.testing.storage import FaultyDirectory, PowerCutError
from strongroom.vault.keys import (
    KEYS,
    AgeIdentity,
    AgeRecipient,
    KeyFile,
    KeyRing,
    Passphrase,
    PasswordCost,
    SourceKey,
    read_passphrase,
)

NOW = dt.datetime(2030, 1, 31, 12, 0, 0, 5, dt.UTC)
LATER = NOW + dt.timedelta(days=400)
CHEAP = PasswordCost(memory=MIN_MEMORY, passes=MIN_PASSES, lanes=1)
VAULT_KEY = os.urandom(32)
ALICE, BOB = KeyFile(os.urandom(32)), KeyFile(os.urandom(32))


class Source:
    """A key source that knows some data, and takes the key to it from a dictionary."""

    scheme = "test"

    def __init__(self, keys):
        self.keys = keys
        self.asked = []

    def unwrap(self, data):
        self.asked.append(data)
        try:
            return self.keys[data]
        except KeyError:
            raise WrongKeyError("test source: has no such key") from None


def age_pair():
    identity = pyrage.x25519.Identity.generate()
    return AgeRecipient(str(identity.to_public())), AgeIdentity(f"# a comment\n\n{identity}\n")


def pair(kind):
    """A holder of a kind, its secret, and a secret of that kind that is not its own."""
    if kind == "key-file":
        return ALICE, KeyFile(ALICE._key), BOB
    if kind == "passphrase":
        return Passphrase("correct horse", cost=CHEAP), Passphrase("correct horse"), Passphrase("Correct horse")
    if kind == "age":
        return *age_pair(), age_pair()[1]
    key = os.urandom(32)
    return SourceKey("test", b"slot 7", key), Source({b"slot 7": key}), Source({b"slot 7": os.urandom(32)})


KINDS = ("key-file", "passphrase", "age", "source")


def ring_of(*holders):
    ring = KeyRing.create(VAULT_KEY, holders[0], label="holder 0", now=NOW)
    for index, holder in enumerate(holders[1:], 1):
        ring.add(VAULT_KEY, holder, label=f"holder {index}", now=NOW)
    return ring


def again(ring):
    return KeyRing.decode(ring.encode())


# Opening.


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_there_and_back(kind):
    holder, secret, other = pair(kind)
    ring = again(ring_of(holder))
    assert ring.unlock(secret) == VAULT_KEY
    with pytest.raises(WrongKeyError, match="opens no slot of the vault \\(1 tried\\)"):
        ring.unlock(other)
    (slot,) = ring.slots
    assert (slot.index, slot.kind, slot.label) == (0, kind, "holder 0")
    assert slot.created == NOW.replace(microsecond=0)
    assert slot.cost == (CHEAP if kind == "passphrase" else None)
    assert slot.scheme == ("test" if kind == "source" else None)


def test_all_kinds_in_one_ring():
    pairs = [pair(kind) for kind in KINDS]
    ring = again(ring_of(*(holder for holder, _, _ in pairs)))
    for _, secret, other in pairs:
        assert ring.unlock(secret) == VAULT_KEY
        with pytest.raises(WrongKeyError):
            ring.unlock(other)


def test_several_slots_of_a_kind_are_all_tried_and_none_is_named():
    ring = again(ring_of(*(KeyFile(os.urandom(32)) for _ in range(15)), ALICE))
    assert ring.unlock(ALICE) == VAULT_KEY
    with pytest.raises(WrongKeyError) as caught:
        ring.unlock(BOB)
    assert caught.value.message == "key file: opens no slot of the vault (16 tried)"
    assert caught.value.hint is None


def test_a_kind_that_has_no_slot():
    with pytest.raises(WrongKeyError, match="passphrase: the vault has no slot of that kind") as caught:
        ring_of(ALICE).unlock(Passphrase("x"))
    assert caught.value.hint == "its slots are of: key-file"


def test_one_of_several_age_identities_opens():
    recipient, _ = age_pair()
    identities = [pyrage.x25519.Identity.generate() for _ in range(3)]
    ring = ring_of(recipient, AgeRecipient(str(identities[2].to_public())))
    assert ring.unlock(AgeIdentity("\n".join(map(str, identities)))) == VAULT_KEY


def test_a_source_is_asked_for_slots_of_its_scheme_only_until_one_opens():
    keys = {name: os.urandom(32) for name in (b"a", b"b", b"c")}
    ring = ring_of(SourceKey("other", b"o", os.urandom(32)), *(SourceKey("test", name, keys[name]) for name in keys))
    source = Source({b"b": keys[b"b"], b"c": keys[b"c"]})
    assert ring.unlock(source) == VAULT_KEY
    assert source.asked == [b"a", b"b"]


def test_what_a_source_raises_comes_through():
    class Broken(Source):
        def unwrap(self, data):
            raise ConnectionError("nobody answers")

    with pytest.raises(ConnectionError):
        ring_of(SourceKey("test", b"", os.urandom(32))).unlock(Broken({}))


def test_a_source_that_gives_no_key():
    with pytest.raises(TamperedError, match="key source test: 31 bytes, wanted 32"):
        ring_of(SourceKey("test", b"", os.urandom(32))).unlock(Source({b"": bytes(31)}))


def test_a_vault_key_of_one_s_own_is_checked():
    ring = ring_of(ALICE)
    ring.authenticate(VAULT_KEY)
    with pytest.raises(WrongKeyError, match="wraps another vault key"):
        ring.authenticate(bytes(32))


def test_how_an_accent_is_composed_does_not_matter_and_case_and_blanks_do():
    text = unicodedata.normalize("NFD", "Tür  zu")
    ring = ring_of(Passphrase(text, cost=CHEAP))
    assert text != unicodedata.normalize("NFC", text)
    assert ring.unlock(Passphrase(unicodedata.normalize("NFC", text))) == VAULT_KEY
    for other in ("tür  zu", "Tür zu", "Tür  zu "):
        with pytest.raises(WrongKeyError):
            ring.unlock(Passphrase(other))


def test_the_derivations_are_those_of_the_specification():
    """With HKDF from the standard library, and the document read by hand."""

    def hkdf(key, label, context):
        prk = hmac.new(bytes(32), key, hashlib.sha256).digest()
        return hmac.new(prk, label.encode() + b"\0" + context + b"\1", hashlib.sha256).digest()

    def canonical(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    ring = ring_of(ALICE)
    data = ring.encode()
    document = json.loads(data)
    (slot,) = document["slots"]
    ring_id, salt = bytes.fromhex(document["id"]), base64.b64decode(slot["salt"])
    box = base64.b64decode(slot.pop("box"))
    assert base64.b64decode(slot["commitment"]) == hkdf(
        ALICE._key, "strongroom/keys/v0/slot-commitment", ring_id + salt
    )
    wrapping = hkdf(ALICE._key, "strongroom/keys/v0/slot-wrap", ring_id + salt)
    aad = b"strongroom/keys/v0/slot\0" + ring_id + canonical(slot)
    assert BlockCipher(wrapping).decrypt(box[:24], box[24:], aad) == VAULT_KEY
    assert base64.b64decode(document["commitment"]) == hkdf(VAULT_KEY, "strongroom/keys/v0/vault-key", ring_id)
    rest = json.loads(data)
    mac = base64.b64decode(rest.pop("mac"))
    assert mac == hkdf(VAULT_KEY, "strongroom/keys/v0/mac", ring_id + hashlib.sha256(canonical(rest)).digest())
    assert ring.version.digest == hashlib.sha256(b"strongroom/keys/v0/digest\0" + data).digest()
    assert derive(b"k" * 32, "l", context=b"c") == hkdf(b"k" * 32, "l", b"c")


# Changing.


def test_add_and_remove():
    ring = ring_of(ALICE, BOB)
    ring.remove(VAULT_KEY, "holder 0")
    ring = again(ring)
    assert [slot.label for slot in ring.slots] == ["holder 1"]
    assert ring.unlock(BOB) == VAULT_KEY
    with pytest.raises(WrongKeyError):
        ring.unlock(ALICE)
    ring.add(VAULT_KEY, ALICE, label="Älice", now=LATER)
    ring.remove(VAULT_KEY, 0)
    assert [slot.label for slot in again(ring).slots] == ["Älice"]


@pytest.mark.parametrize("which", [2, -1, "nobody", "0"])
def test_remove_what_is_not_there(which):
    with pytest.raises(UsageError, match="key slot: there is none"):
        ring_of(ALICE, BOB).remove(VAULT_KEY, which)


def test_the_last_slot_stays_unless_forced():
    ring = ring_of(ALICE)
    with pytest.raises(UsageError, match="is the last"):
        ring.remove(VAULT_KEY, 0)
    assert ring.unlock(ALICE) == VAULT_KEY
    ring.remove(VAULT_KEY, 0, force=True)
    ring = again(ring)
    assert ring.slots == []
    with pytest.raises(WrongKeyError) as caught:
        ring.unlock(ALICE)
    assert caught.value.hint == "its slots are of: none"
    ring.authenticate(VAULT_KEY)


def test_there_are_sixteen_slots():
    ring = ring_of(*(KeyFile(os.urandom(32)) for _ in range(16)))
    with pytest.raises(UsageError, match="16 are taken"):
        ring.add(VAULT_KEY, ALICE, label="one more", now=NOW)
    ring.remove(VAULT_KEY, 3)
    ring.add(VAULT_KEY, ALICE, label="one more", now=NOW)
    assert again(ring).unlock(ALICE) == VAULT_KEY


def test_the_largest_ring_keeps_the_bound():
    data, label = os.urandom(1024), "𐀀" * 24  # of two escapes each
    ring = KeyRing.create(VAULT_KEY, SourceKey("s" * 32, data, bytes(32)), label=label + "0", now=NOW)
    for index in range(1, 16):
        ring.add(VAULT_KEY, SourceKey("s" * 32, data, bytes(32)), label=label + f"{index:x}", now=NOW)
    assert len(ring.encode()) < 48 << 10
    assert len(again(ring).slots) == 16


@pytest.mark.parametrize("change", ["add", "remove"])
def test_only_the_vault_key_changes_a_ring(change):
    ring = ring_of(ALICE, BOB)
    with pytest.raises(WrongKeyError):
        if change == "add":
            ring.add(os.urandom(32), ALICE, label="x", now=NOW)
        else:
            ring.remove(os.urandom(32), 0)


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", ["key-file", "passphrase"])
def test_rotate(old, new):
    old_holder, old_secret, wrong = pair(old)
    secret = KeyFile(os.urandom(32)) if new == "key-file" else Passphrase("new", cost=CHEAP)
    ring = ring_of(BOB, old_holder, KeyFile(os.urandom(32)))
    if old != "key-file":
        with pytest.raises(WrongKeyError):
            ring.rotate(wrong, secret, now=LATER)
    ring.rotate(old_secret, secret, now=LATER)
    ring = again(ring)
    assert [(slot.kind, slot.label) for slot in ring.slots][1] == (new, "holder 1")
    assert ring.slots[1].created == LATER.replace(microsecond=0)
    assert ring.slots[0].created == NOW.replace(microsecond=0)
    assert ring.unlock(secret) == ring.unlock(BOB) == VAULT_KEY
    with pytest.raises(WrongKeyError):
        ring.unlock(old_secret)


def test_rotate_under_another_label():
    ring = ring_of(ALICE, BOB)
    with pytest.raises(UsageError, match="another slot has it"):
        ring.rotate(ALICE, KeyFile(bytes(32)), now=LATER, label="holder 1")
    ring.rotate(ALICE, KeyFile(bytes(32)), now=LATER, label="Carol")
    ring.rotate(BOB, KeyFile(bytes(31) + b"x"), now=LATER, label="holder 1")
    assert [slot.label for slot in ring.slots] == ["Carol", "holder 1"]


@pytest.mark.parametrize("label", ["", "a\nb", "\x1b[2J", "a\u2028b", "\ud800", "x" * 101, "ä" * 51, "\u202e"])
def test_labels_that_are_refused(label):
    with pytest.raises(UsageError, match="label: "):
        ring_of(ALICE).add(VAULT_KEY, BOB, label=label, now=NOW)


def test_no_two_slots_have_one_label():
    with pytest.raises(UsageError, match="label: holder 0: another slot has it"):
        ring_of(ALICE).add(VAULT_KEY, BOB, label="holder 0", now=NOW)


def test_a_time_has_a_zone():
    with pytest.raises(UsageError, match="time zone"):
        ring_of(ALICE).add(VAULT_KEY, BOB, label="x", now=NOW.replace(tzinfo=None))
    east = NOW.astimezone(dt.timezone(dt.timedelta(hours=5)))
    assert KeyRing.create(VAULT_KEY, BOB, label="x", now=east).slots[0].created == NOW.replace(microsecond=0)


def test_a_vault_key_has_32_bytes():
    with pytest.raises(UsageError, match="31 bytes"):
        KeyRing.create(bytes(31), ALICE, label="x", now=NOW)


# Costs.


@pytest.mark.parametrize(
    ("cost", "field"),
    [
        ({"memory": MIN_MEMORY - 1}, "memory"),
        ({"memory": (1 << 20) + 1, "passes": 2}, "memory"),
        ({"passes": 1}, "passes"),
        ({"passes": 17}, "passes"),
        ({"lanes": 0}, "lanes"),
        ({"lanes": 17}, "lanes"),
        ({"memory": 1 << 20, "passes": 5}, "memory times passes"),
    ],
)
def test_costs_out_of_bounds(cost, field):
    with pytest.raises(UsageError, match=f"Argon2id {field}: "):
        PasswordCost(**cost)
    # A file that says so is refused before anything is derived.
    document = json.loads(ring_of(Passphrase("x", cost=CHEAP)).encode())
    document["slots"][0] |= {"memory": 64 << 10, "passes": 3} | cost
    with pytest.raises(FormatError):
        KeyRing.decode(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def test_all_passphrases_together_have_a_bound(monkeypatch):
    monkeypatch.setattr("strongroom.vault.keys.holders.password_key", lambda *_: bytes(32))
    dear = PasswordCost(memory=1 << 20, passes=4)
    ring = ring_of(Passphrase("a", cost=dear), Passphrase("b", cost=dear))
    with pytest.raises(UsageError, match="of all slots"):
        ring.add(VAULT_KEY, Passphrase("c", cost=CHEAP), label="c", now=NOW)
    document = json.loads(ring.encode())
    document["slots"].append(document["slots"][0] | {"label": "c"})
    with pytest.raises(FormatError, match="of all slots"):
        KeyRing.decode(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def test_the_default_cost_is_the_recommendation_of_rfc_9106():
    assert dataclasses.astuple(PasswordCost()) == (64 << 10, 3, 4)


def test_a_known_answer_of_argon2id():
    """From the tests of the reference implementation: version 0x13, 2 passes, 2^16 KiB, 1 lane."""
    key = password_key(b"password", b"somesalt", PasswordCost(memory=1 << 16, passes=2, lanes=1))
    assert key.hex() == "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"
    with pytest.raises(ValueError, match="salt: 7 bytes"):
        password_key(b"password", b"somesal", CHEAP)


# Saving.


def test_save_and_load(tmp_path):
    for directory in (LocalDirectory(tmp_path), MemoryDirectory()):
        assert KeyRing.load(directory) is None
        ring = ring_of(ALICE)
        ring.save(directory)
        ring.save(directory)
        assert directory.list() == [KEYS]
        loaded = KeyRing.load(directory)
        assert loaded.encode() == ring.encode()
        assert loaded.unlock(ALICE) == VAULT_KEY
        loaded.add(VAULT_KEY, BOB, label="Bob", now=NOW)
        loaded.save(directory)
        assert KeyRing.load(directory).unlock(BOB) == VAULT_KEY


def test_a_file_that_is_too_long_is_not_read(monkeypatch):
    with pytest.raises(FormatError, match="more than 65536 bytes"):
        KeyRing.load(MemoryDirectory({KEYS: b"{" * 65537}))
    with pytest.raises(FormatError, match="not JSON"):
        KeyRing.load(MemoryDirectory({KEYS: b"[" * 65536}))


def test_what_others_saved_meanwhile_is_not_overwritten():
    directory = MemoryDirectory()
    ring_of(ALICE).save(directory)
    one, two = KeyRing.load(directory), KeyRing.load(directory)
    one.add(VAULT_KEY, BOB, label="Bob", now=NOW)
    two.add(VAULT_KEY, KeyFile(bytes(32)), label="Carol", now=NOW)
    one.save(directory)
    with pytest.raises(ConflictError):
        two.save(directory)
    with pytest.raises(ConflictError):
        ring_of(ALICE).save(directory)
    assert [slot.label for slot in KeyRing.load(directory).slots] == ["holder 0", "Bob"]


def test_crash_at_every_step_of_saving():
    start = MemoryDirectory()
    ring_of(ALICE).save(start)
    old = bytes(start.files[KEYS].data)
    files = {KEYS: old, "keys.0123456789abcdef.new": b"left by a crash", "meta": b"others are left alone"}

    def change(directory):
        ring = KeyRing.load(directory)
        ring.rotate(ALICE, BOB, now=LATER)
        ring.save(directory)
        return ring.encode()

    whole = FaultyDirectory(files)
    change(whole)
    assert whole.list() == [KEYS, "meta"]
    assert whole.steps > 4
    seen = set()
    for stop in range(whole.steps + 1):
        for seed in range(-2, 6):
            rng = random.Random(seed)  # noqa: S311  # a failure must come back
            disk, new = FaultyDirectory(files, stop_after=stop), None
            with contextlib.suppress(PowerCutError):
                new = change(disk)
            after = disk.after_crash(
                {-2: lambda _: False, -1: lambda _: True}.get(seed, lambda _, rng=rng: rng.random() < 0.5)
            )
            found = KeyRing.load(after)
            assert found.encode() == new or new is None
            is_old = found.encode() == old
            seen.add(is_old)
            assert found.unlock(ALICE if is_old else BOB) == VAULT_KEY
            # The survivor can be changed.
            found.add(VAULT_KEY, KeyFile(bytes(32)), label="onward", now=LATER)
            found.save(after)
            assert after.list() == [KEYS, "meta"]
    assert seen == {True, False}


def test_a_save_that_failed_can_be_repeated():
    """The first attempt got as far as the new name, and its directory was never synced: the second one does that."""

    class Failing(MemoryDirectory):
        failures = 1
        synced = 0

        def sync(self):
            if self.failures:
                self.failures -= 1
                raise OSError("input/output error")
            self.synced += 1

    directory, ring = Failing(), ring_of(ALICE)
    with pytest.raises(OSError, match="input"):
        ring.save(directory)
    ring.save(directory)
    assert directory.synced == 1
    ring.add(VAULT_KEY, BOB, label="Bob", now=NOW)
    ring.save(directory)
    assert KeyRing.load(directory).version.sequence == 2


# Freshness.


def saved(directory, ring):
    ring.save(directory)
    return bytes(directory.files[KEYS].data), ring.version


def test_generations_and_what_a_vault_accepts():
    directory, ring = MemoryDirectory(), ring_of(ALICE)
    versions = [saved(directory, ring)]
    for index in range(3):
        ring.add(VAULT_KEY, KeyFile(os.urandom(32)), label=f"a {index}", now=NOW)
        ring.add(VAULT_KEY, KeyFile(os.urandom(32)), label=f"b {index}", now=NOW)
        versions.append(saved(directory, ring))
    assert [version.sequence for _, version in versions] == [1, 2, 3, 4]
    remembered = [None, *(version for _, version in versions)]
    for offered, (data, version) in enumerate(versions, 1):
        for expected, root in enumerate(remembered):
            found = KeyRing.decode(data)
            assert found.version == version
            found.unlock(ALICE)
            if offered in (expected, expected + 1):
                found.check(root)
            else:
                with pytest.raises(RollbackError, match=f"generation {offered}, wanted {max(expected, 1)}"):
                    found.check(root)


def test_another_history_is_a_rollback():
    directory, ring = MemoryDirectory(), ring_of(ALICE)
    data, _ = saved(directory, ring)
    ring.add(VAULT_KEY, BOB, label="Bob", now=NOW)
    ring.save(directory)
    fork = KeyRing.decode(data)
    fork.add(VAULT_KEY, BOB, label="Bob", now=NOW)
    with pytest.raises(RollbackError):
        fork.check(ring.version)


def test_a_ring_is_unlocked_before_it_is_checked():
    ring = ring_of(ALICE)
    with pytest.raises(UsageError, match="before it was unlocked"):
        again(ring).check(ring.version)


# Secrets stay where they are.


def test_nothing_shows_a_secret():
    identity = pyrage.x25519.Identity.generate()
    key, text = os.urandom(32), "open sesame"
    things = [
        KeyFile(key),
        Passphrase(text),
        AgeIdentity(str(identity)),
        SourceKey("s", b"", key),
        AgeRecipient(str(identity.to_public())),
        ring_of(KeyFile(key), Passphrase(text, cost=CHEAP)),
    ]
    shown = repr(things) + repr(things[-1]._document)
    for secret in (repr(key)[2:-1], key.hex(), text, str(identity), repr(VAULT_KEY)[2:-1]):
        assert secret not in shown


@pytest.mark.parametrize("text", ["", "a\tb", "a\nb", "\ud800x", "x" * 1025, "ä" * 513, "\U000e0fff\u0378"])
def test_passphrases_that_are_refused(text):
    with pytest.raises(UsageError, match="passphrase: ") as caught:
        Passphrase(text)
    error = caught.value
    assert error.__context__ is None
    assert not text or text not in str(error)


def test_key_files(tmp_path):
    key = create_key(tmp_path / "key")
    assert ring_of(KeyFile(key)).unlock(KeyFile.load(tmp_path / "key")) == VAULT_KEY
    with pytest.raises(UsageError, match="31 bytes"):
        KeyFile(bytes(31))


def test_identity_files(tmp_path):
    identity = pyrage.x25519.Identity.generate()
    path = tmp_path / "identity"
    path.write_text(f"# created: today, by Jürgen\n# public key: {identity.to_public()}\n{identity}\n", "utf-8")
    assert ring_of(AgeRecipient(str(identity.to_public()))).unlock(AgeIdentity.load(path)) == VAULT_KEY
    path.write_bytes(b"#" * (65 << 10))
    with pytest.raises(FormatError, match="more than 65536 bytes"):
        AgeIdentity.load(path)


def test_identities_and_recipients_that_are_refused():
    identity = str(pyrage.x25519.Identity.generate())
    for text in ("", "# comment\n", identity[:-1], f"{identity}\nx", "\n".join([identity] * 17)):
        with pytest.raises(FormatError, match="age identity: ") as caught:
            AgeIdentity(text)
        assert identity[20:40] not in str(caught.value)
    for text in ("", "age1", identity):
        with pytest.raises(UsageError, match="age recipient: ") as caught:
            AgeRecipient(text)
        assert identity[20:40] not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(("CAS", b"", bytes(32)), "lower-case word"), (("", b"", bytes(32)), "lower-case word"),
     (("cas", bytes(1025), bytes(32)), "1025 bytes of data"), (("cas", b"", bytes(31)), "key: 31 bytes")],
)  # fmt: skip
def test_source_keys_that_are_refused(arguments, problem):
    with pytest.raises(UsageError, match=problem):
        SourceKey(*arguments)


def test_without_pyrage(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyrage", None)
    for make in (AgeRecipient, AgeIdentity):
        with pytest.raises(MissingDependencyError, match="pyrage is missing") as caught:
            make("x")
        assert caught.value.hint == "pip install 'strongroom[age]'"


# Asking.


def from_descriptor(data, count=1):
    reader, writer = os.pipe()
    try:
        os.write(writer, data)
        os.close(writer)
        return [read_passphrase("unused", reader) for _ in range(count)]
    finally:
        os.close(reader)


@pytest.mark.parametrize("data", [b"open sesame", b"open sesame\n", b"open sesame\r\n", b"open sesame\nmore\n"])
def test_a_passphrase_from_a_descriptor(data):
    assert from_descriptor(data) == ["open sesame"]


def test_a_descriptor_can_hold_several():
    assert from_descriptor("alt ä\nneu 新\n".encode(), 2) == ["alt ä", "neu 新"]
    assert from_descriptor(b"x" * 1024 + b"\r\n") == ["x" * 1024]


@pytest.mark.parametrize(
    ("data", "problem"),
    [(b"", "empty"), (b"\n", "empty"), (b"\r\nx", "empty"), (b"x" * 1025, "1024"), (b"x" * 9999, "1024"),
     (b"\xffsecret\n", "UTF-8")],
)  # fmt: skip
def test_what_is_no_passphrase_on_a_descriptor(data, problem):
    with pytest.raises(UsageError, match=problem) as caught:
        from_descriptor(data)
    assert caught.value.__context__ is None
    assert "secret" not in str(caught.value)


def test_a_descriptor_that_is_none():
    with pytest.raises(UsageError, match="descriptor 9999"):
        read_passphrase("unused", 9999)


def test_a_passphrase_from_the_terminal(monkeypatch):
    answers, prompts = iter(["one", "one", "one", "two", "", "Jos\udce9"]), []

    def answer(prompt):
        prompts.append(prompt)
        return next(answers)

    monkeypatch.setattr(getpass, "getpass", answer)
    assert read_passphrase("passphrase: ", confirm=True) == "one"
    assert prompts == ["passphrase: ", "again, passphrase: "]
    for problem, confirm in (("differ", True), ("empty", False), ("UTF-8", False)):
        with pytest.raises(UsageError, match=problem):
            read_passphrase("passphrase: ", confirm=confirm)


def test_without_a_terminal_nothing_is_read_with_echo():
    code = (
        "from strongroom.errors import UsageError\n"
        "from strongroom.vault.keys import read_passphrase\n"
        "try: read_passphrase('passphrase: ')\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], input="secret\n", capture_output=True, text=True,
        start_new_session=True, check=True,
    )  # fmt: skip
    assert done.stdout == "passphrase: there is no terminal to read it from without echo\n"
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.skipif(not hasattr(os, "login_tty"), reason="needs a terminal of its own")
def test_a_terminal_does_not_show_what_is_typed():
    code = (
        "import os, sys; os.login_tty(int(sys.argv[1]))\n"
        "from strongroom.vault.keys import read_passphrase\n"
        "print(len(read_passphrase('passphrase: ')))\n"
    )
    ours, theirs = os.openpty()
    with subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(theirs)], pass_fds=[theirs]) as child:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
            while data := os.read(ours, 1000):
                # Echo is off once the prompt is there.
                if not shown.endswith(b": ") and (shown + data).endswith(b": "):
                    os.write(ours, b"secret\n")
                shown += data
    os.close(ours)
    assert child.returncode == 0
    assert shown.replace(b"\r", b"") == b"passphrase: \n6\n"
