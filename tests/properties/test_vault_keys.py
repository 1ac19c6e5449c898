"""The key ring against a dictionary, and its parser against garbage."""

import contextlib
import datetime as dt
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from strongroom.errors import FormatError, StrongroomError, UsageError, WrongKeyError
from strongroom.storage import MemoryDirectory
from strongroom.vault.keys import KEYS, AgeIdentity, KeyFile, KeyRing, Passphrase, SourceKey
from strongroom.vault.keys.slots import MAX_SLOTS, Slot, label_problem

VAULT_KEY = bytes(range(32))
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)

keys = st.integers(0, 40).map(lambda number: number.to_bytes(32, "big"))
labels = st.text(min_size=1, max_size=8)
times = st.datetimes(dt.datetime(1, 1, 3), dt.datetime(9999, 12, 29), timezones=st.timezones())


def canonical(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


class Source:
    def __init__(self, scheme, key):
        self.scheme = scheme
        self.key = key

    def unwrap(self, data):
        return self.key


def secret_of(holder):
    return Source(holder.scheme, holder._key) if isinstance(holder, SourceKey) else holder


holders = st.one_of(keys.map(KeyFile), st.builds(SourceKey, st.sampled_from(["a", "b-2"]), st.binary(max_size=4), keys))


class KeyRingMachine(RuleBasedStateMachine):
    """`model` maps labels to holders as the ring should have them, `on_disk` as they were saved last."""

    @initialize(holder=holders)
    def create(self, holder):
        self.directory = MemoryDirectory()
        self.ring = KeyRing.create(VAULT_KEY, holder, label="first", now=NOW)
        self.ring.save(self.directory)
        self.model = {"first": holder}
        self.on_disk = dict(self.model)
        self.versions = [self.ring.version]

    @rule(holder=holders, label=labels, now=times)
    def add(self, holder, label, now):
        refused = label in self.model or len(self.model) >= MAX_SLOTS or label_problem(label)
        with pytest.raises(UsageError) if refused else contextlib.nullcontext():
            self.ring.add(VAULT_KEY, holder, label=label, now=now)
            self.model[label] = holder

    @rule(data=st.data(), by_label=st.booleans())
    def remove(self, data, by_label):
        index = data.draw(st.integers(0, len(self.model) - 1))
        label = list(self.model)[index]
        with pytest.raises(UsageError) if len(self.model) == 1 else contextlib.nullcontext():
            self.ring.remove(VAULT_KEY, label if by_label else index)
            del self.model[label]

    @rule(data=st.data(), new=holders)
    def rotate(self, data, new):
        old = data.draw(st.sampled_from(list(self.model.values())))
        # The first slot that it opens is the one replaced.
        label = next(label for label, holder in self.model.items() if opens(old, holder))
        self.ring.rotate(secret_of(old), new, now=NOW)
        self.model[label] = new

    @rule()
    def save(self):
        changed = self.ring.version != self.versions[-1]
        self.ring.save(self.directory)
        self.on_disk = dict(self.model)
        if changed:
            self.versions.append(self.ring.version)
        assert [version.sequence for version in self.versions] == list(range(1, len(self.versions) + 1))

    @precondition(lambda self: self.on_disk != self.model)
    @rule()
    def forget(self):
        self.ring = KeyRing.load(self.directory)
        self.model = dict(self.on_disk)

    @rule(holder=holders)
    def unlock(self, holder):
        if any(opens(holder, other) for other in self.model.values()):
            assert self.ring.unlock(secret_of(holder)) == VAULT_KEY
        else:
            with pytest.raises(WrongKeyError):
                self.ring.unlock(secret_of(holder))

    @invariant()
    def what_is_shown(self):
        ring = KeyRing.decode(self.ring.encode())
        ring.authenticate(VAULT_KEY)
        assert ring.encode() == self.ring.encode()
        assert [slot.label for slot in ring.slots] == list(self.model)
        assert [slot.kind for slot in ring.slots] == [holder.kind for holder in self.model.values()]
        ring.check(ring.version)


def opens(holder, other):
    same = (getattr(thing, "scheme", None) for thing in (holder, other))
    return len(set(same)) == 1 and holder._key == other._key


TestKeyRing = KeyRingMachine.TestCase
TestKeyRing.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def sample():
    ring = KeyRing.create(VAULT_KEY, KeyFile(bytes(32)), label="ä", now=NOW)
    ring.add(VAULT_KEY, SourceKey("cas", b"data", bytes(32)), label="b", now=NOW)
    document = json.loads(ring.encode())
    # Slots of the other kinds, as far as parsing goes.
    document["slots"] += [
        document["slots"][0] | extra
        for extra in (
            {"kind": "passphrase", "label": "c", "memory": 65536, "passes": 3, "lanes": 4},
            {"kind": "age", "label": "d", "age": "YWdl"},
        )
    ]
    return document


SAMPLE = sample()
json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-2, 1 << 70), st.floats(), st.text(max_size=12),
        st.sampled_from(["", "key-file", "passphrase", "age", "source", "AAAA", "AAAB", "AB==", "1:" + "0" * 64]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


def places(value, path=()):
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        yield from places(child, (*path, name))


def parses_to_itself(data):
    try:
        ring = KeyRing.decode(data)
    except FormatError:
        return False
    assert ring.encode() == data
    return True


def test_the_sample_parses():
    assert parses_to_itself(canonical(SAMPLE))


@given(st.binary(max_size=200))
def test_any_bytes(data):
    assert not parses_to_itself(data)


@given(path=st.sampled_from(list(places(SAMPLE))), value=json_values, drop=st.booleans())
@settings(max_examples=400)
def test_any_value_anywhere(path, value, drop):
    document = json.loads(json.dumps(SAMPLE))
    if not path:
        parses_to_itself(canonical(value))
        return
    at = document
    for name in path[:-1]:
        at = at[name]
    if drop:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    parses_to_itself(canonical(document))


@given(at=st.integers(0, len(canonical(SAMPLE))), insert=st.binary(max_size=3), cut=st.integers(0, 3))
@settings(max_examples=400)
def test_no_second_spelling(at, insert, cut):
    """What parses after any change of the bytes is a file of its own, and says so in its version."""
    data = canonical(SAMPLE)
    changed = data[:at] + insert + data[at + cut :]
    if parses_to_itself(changed) and changed != data:
        assert KeyRing.decode(changed).version != KeyRing.decode(data).version


def test_other_spellings_of_the_same_document():
    data = canonical(SAMPLE)
    text = data.decode()
    others = [data + b"\n", b" " + data, b"\xef\xbb\xbf" + data, text.encode("utf-16"), json.dumps(SAMPLE).encode()]
    for spelling, another in (
        ("\\u00e4", "ä"),
        ("\\u00e4", "\\u00E4"),
        ('"version":0', '"version":0,"version":0'),
        ('"version":0', '"version":-0'),
        ('"version":0', '"version":0.0'),
        ('"version":0', '"version":false'),
        *(('"generation":1', f'"generation":{number}') for number in ("1.0", "1e0", "true", "01", "NaN", "9" * 5000)),
        ("YWdl", "YWdl\\n"),
        ("T00:00:00Z", "T00:00:00z"),
        ("T00:00:00Z", "T24:00:00Z"),
        ("2030-01-01T", "20300101T"),
        ("AAAA", "AAA\\u0041"),
    ):
        if spelling in text:
            others.append(text.replace(spelling, another, 1).encode())
    assert len(others) > 15
    for other in others:
        assert other != data
        assert not parses_to_itself(other)


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=4), st.integers(0, 600), st.binary(max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_age_slot_with_anything_in_it(parts, at, insert):
    """pyrage reads what the disk holds; it refuses, and the answer is that the key is wrong."""
    pyrage = pytest.importorskip("pyrage")
    identity = pyrage.x25519.Identity.generate()
    real = pyrage.encrypt(bytes(32), [identity.to_public()])
    for stanza in (b"age-encryption.org/v1\n" + b"\n".join(parts), real[:at] + insert + real[at + 1 :]):
        if not 1 <= len(stanza) <= 1024:
            continue
        slot = Slot("age", "x", NOW, bytes(16), stanza=stanza).wrap(bytes(16), b"k" * 32, VAULT_KEY)
        document = sample() | {"slots": [slot.members()]}
        with pytest.raises(WrongKeyError):
            KeyRing.decode(canonical(document)).unlock(AgeIdentity(str(identity)))


@given(st.text(max_size=20))
def test_any_passphrase_is_refused_by_its_name_or_taken(text):
    with contextlib.suppress(UsageError):
        Passphrase(text)


@given(st.text(max_size=60))
def test_any_label_that_is_taken_comes_back(label):
    ring = KeyRing.create(VAULT_KEY, KeyFile(bytes(32)), label="first", now=NOW)
    with contextlib.suppress(UsageError):
        ring.add(VAULT_KEY, KeyFile(bytes(32)), label=label, now=NOW)
        assert KeyRing.decode(ring.encode()).slots[1].label == label


@given(st.binary(max_size=300))
def test_a_directory_with_anything_in_it(data):
    with contextlib.suppress(StrongroomError):
        KeyRing.load(MemoryDirectory({KEYS: data}))
