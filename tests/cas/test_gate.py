"""After a start a CAS serves nothing until the log's head is confirmed, in the way that is part of its state."""

from __future__ import annotations

import itertools
import json
import threading

import pytest

from strongroom.cas import OwnerClient
from strongroom.cas.log.head import Head
from strongroom.cas.log.note import Checkpoint
from strongroom.cas.log.witness import Witness
from strongroom.cas.service.server import Settings, _start_mode, prepare
from strongroom.cas.start.gate import Gate
from strongroom.cas.start.mode import TRUST_DISK, Restart, agree, change
from strongroom.cas.start.operators import Operators
from strongroom.cas.start.tpm_head import DEFAULT_INDEX
from strongroom.cli.cas.witness import cosign_head
from strongroom.crypto import SigningKey
from strongroom.errors import (
    DatabaseError,
    FormatError,
    NotReadyError,
    RollbackError,
    StrongroomError,
    UnauthorizedError,
    UsageError,
)
from strongroom.testing.swtpm import SoftwareTpm, lacking
from tests.cas.world import cas_in, document, world_in

OPERATORS = [SigningKey.generate() for _ in range(3)]
OWNERS = Restart("owner", tuple(key.public.fingerprint for key in OPERATORS), 2)


def head_of(client: OwnerClient) -> Head:
    checkpoint = Checkpoint.parse(client.log_head()[0].text)
    return Head(checkpoint.size, checkpoint.root)


def begin(tmp_path, restart):
    """Create a CAS with something in it, or start it; the head of its log."""
    service = prepare(tmp_path / "cas", restart=restart)
    try:
        service.store.record("word", "acme/train", {}, now=1)
        return service.store.head()
    finally:
        service.close()


def test_a_new_cas_and_one_that_trusts_its_disk_serve_at_once(tmp_path):
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        name = world.name
        assert world.client.gate()["restart"]["mode"] == "trust-disk"
    with cas_in(tmp_path) as cas, cas.owner() as client:
        assert client.policy(name).name == name


def test_until_enough_operators_have_confirmed_it_only_says_who_it_is(tmp_path):
    head = begin(tmp_path, OWNERS)
    with cas_in(tmp_path) as cas, cas.owner() as client:
        state = client.gate()
        assert (state["ready"], state["state"], state["operators_needed"]) == (False, "awaiting", 2)
        assert client.describe()["cas_root"] == cas.address.cas_root
        assert head_of(client) == head
        for ask in (
            lambda: client.policy("acme/train"),
            lambda: client.apply(document(OPERATORS[0])),
            lambda: client.log(),
            lambda: client.vote_restart(Restart()),
        ):
            with pytest.raises(NotReadyError, match="0 of 2 operators have confirmed the log's head"):
                ask()
        for number, operator in enumerate(OPERATORS[:2], 1):
            with cas.owner(operator) as confirming:
                named = number == 2
                assert confirming.confirm_head(head, named=named)["ready"] is (number == 2)
                assert confirming.confirm_head(head, named=named)["ready"] is (number == 2)  # one counts once
        client.apply(document(client._require_owner()))
    service = prepare(tmp_path / "cas")
    try:
        entries = [(e.event, json.loads(e.detail)) for e in service.store.log()]
    finally:
        service.close()
    said = {d["by"]: (d["head"], d["how"]) for event, d in entries if event == "confirmed"}
    first, second = (key.public.fingerprint for key in OPERATORS[:2])
    assert said == {first: (str(head), "seen"), second: (str(head), "named")}


@pytest.fixture
def grouped(tmp_path):
    """A CAS in `trust-disk` with one operator, whose writes await `flush`; and that operator."""
    key = OPERATORS[0]
    begin(tmp_path, Restart("trust-disk", (key.public.fingerprint,), 1))
    service = prepare(tmp_path / "cas")
    service.store.group(lambda: True)
    yield service, key
    service.store.group(lambda: False)
    service.close()


def vote(service, key, new):
    """Have it voted for, as the API does."""
    gate = service.gate
    signature = key.sign(change(service.address.cas_root, gate.start, gate.restart, new))
    assert gate.vote(key.public, signature, new)
    gate.make(new)
    return gate.change(new, now=1)


def test_a_vote_whose_commit_fails_has_changed_nothing(grouped, tmp_path, monkeypatch):
    service, key = grouped
    gate, new = service.gate, Restart("owner", (key.public.fingerprint,), 1)
    before, start = gate.restart, gate.start

    def full():
        raise DatabaseError("disk: is full")

    with monkeypatch.context() as patched:
        patched.setattr(service.store._db, "commit", full)
        assert vote(service, key, new)
        assert gate.restart == new  # for those whose answers wait for the same commit
        with pytest.raises(DatabaseError):
            service.store.flush()
    assert (gate.restart, gate.start) == (before, start)
    assert vote(service, key, new)
    service.store.flush()
    assert gate.restart == new
    assert gate.start != start
    service.close()
    again = prepare(tmp_path / "cas")
    assert again.gate.state == "awaiting"
    again.close()


def test_a_first_mode_is_marked_only_once_it_is_committed(tmp_path, monkeypatch):
    directory, key = tmp_path / "cas", OPERATORS[0]
    prepare(directory).close()
    service = prepare(directory)
    store, gate, authority = service.store, service.gate, service.authority
    new = Restart("owner", (key.public.fingerprint,), 1)
    monkeypatch.setattr(gate, "operators", lambda: Operators((key.public.fingerprint,), 1))

    def full():
        raise DatabaseError("disk: is full")

    store.group(lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(store._db, "commit", full)
        assert vote(service, key, new)
        with pytest.raises(DatabaseError):
            store.flush()
    assert not authority.holds_mode
    store.group(lambda: False)
    service.close()
    again = prepare(directory)
    assert again.gate.restart == TRUST_DISK
    again.close()


def test_a_gate_opens_once_that_is_committed(tmp_path, monkeypatch):
    begin(tmp_path, OWNERS)
    service = prepare(tmp_path / "cas")
    store, gate = service.store, service.gate

    def full():
        raise DatabaseError("disk: is full")

    store.group(lambda: True)
    with monkeypatch.context() as patched:
        patched.setattr(store._db, "commit", full)
        gate.open(["a"], now=1)
        assert gate.ready  # for those whose answers wait for the same commit
        elsewhere = threading.Thread(target=lambda: seen.append(gate.ready))
        seen = []
        elsewhere.start()
        elsewhere.join()
        assert seen == [False]
        with pytest.raises(DatabaseError):
            store.flush()
    assert not gate.ready
    gate.open(["a"], now=1)
    store.flush()
    assert gate.ready
    store.group(lambda: False)
    service.close()


def test_other_instances_have_the_mode_that_one_of_them_wrote(grouped):
    service, key = grouped
    other = Gate(service.store, service.authority)
    new = Restart("owner", (key.public.fingerprint,), 1)
    assert vote(service, key, new)
    service.store.flush()
    assert (other.restart, other.ready) == (new, True)


def test_who_is_no_operator_confirms_nothing(tmp_path):
    head = begin(tmp_path, OWNERS)
    with cas_in(tmp_path) as cas, cas.owner() as client:
        with pytest.raises(UnauthorizedError, match="is none of this CAS's"):
            client.confirm_head(head)
        assert not client.gate()["ready"]


def test_witnesses_cosign_a_head_with_the_nonce_of_this_start(tmp_path):
    witnesses = [Witness(tmp_path / f"w{n}", name=f"w{n}.example/1") for n in range(3)]
    restart = Restart("witness", witnesses=tuple(str(w.key) for w in witnesses), quorum=2)
    begin(tmp_path, restart)
    with cas_in(tmp_path) as cas, cas.owner() as client:
        root = cas.address.cas_root
        first = cosign_head(witnesses[0], client, root, now=1)
        assert Checkpoint.parse(first.text).extension == (f"strongroom-start {client.gate()['start']}",)
        client.put_cosigned(first)
        client.put_cosigned(cosign_head(witnesses[0], client, root, now=2))
        assert client.gate()["awaited"] == "1 of 2 witnesses have cosigned the log's head"
        client.put_cosigned(cosign_head(witnesses[2], client, root, now=3))
        assert client.gate()["ready"]
        assert Checkpoint.parse(client.log_head()[0].text).extension == ()
        assert client.log() == []


def test_operators_stand_in_for_witnesses_that_are_lost(tmp_path):
    lost = Witness(tmp_path / "lost", name="lost.example/1")
    keys = (OPERATORS[0].public.fingerprint,)
    head = begin(tmp_path, Restart("witness", keys, 1, (str(lost.key),), 1))
    with cas_in(tmp_path) as cas, cas.owner(OPERATORS[0]) as client:
        assert client.confirm_head(head)["ready"]
        new = Restart("owner", keys, 1)
        assert client.vote_restart(new)["changed"]
        assert Restart.from_wire(client.gate()["restart"]) == new
    with cas_in(tmp_path) as cas, cas.owner(OPERATORS[0]) as client:
        assert client.gate()["restart"]["mode"] == "owner"
        assert not client.gate()["ready"]


def test_another_mode_takes_as_many_operators_who_want_the_same(tmp_path):
    with cas_in(tmp_path, restart=OWNERS) as cas:
        clients = [cas.owner(key) for key in OPERATORS]
        other = Restart("trust-disk", OWNERS.operators, 2)
        assert not clients[0].vote_restart(other)["changed"]
        assert not clients[1].vote_restart(Restart())["changed"]
        assert not clients[2].vote_restart(other)["changed"]
        assert clients[0].vote_restart(other)["changed"]
        with cas.owner() as stranger, pytest.raises(UnauthorizedError):
            stranger.vote_restart(OWNERS)
        for client in clients:
            client.close()
    with cas_in(tmp_path) as cas, cas.owner() as client:
        assert client.gate()["ready"]


@pytest.mark.parametrize(
    "wanted",
    [Restart(), Restart("owner", OWNERS.operators, 1), Restart("owner", OWNERS.operators[:2], 2)],
)
def test_a_start_does_not_choose_another_mode(tmp_path, wanted):
    begin(tmp_path, OWNERS)
    with pytest.raises(UnauthorizedError, match="this CAS's start mode is owner, 2 of 3 operators"):
        begin(tmp_path, wanted)
    with cas_in(tmp_path, restart=OWNERS) as cas, cas.owner() as client:  # what it has anyway may be said
        assert not client.gate()["ready"]


def test_a_cas_that_trusts_its_disk_may_be_given_a_mode(tmp_path):
    begin(tmp_path, None)
    with cas_in(tmp_path, restart=OWNERS) as cas, cas.owner() as client:
        assert not client.gate()["ready"]
    with cas_in(tmp_path) as cas, cas.owner() as client:
        assert client.gate()["restart"]["mode"] == "owner"


def test_the_mode_of_a_marked_cas_is_not_forgotten():
    assert agree(None, None, marked=False) == TRUST_DISK
    assert agree(None, OWNERS, marked=False) == OWNERS
    with pytest.raises(RollbackError, match="its database holds none"):
        agree(None, TRUST_DISK, marked=True)


@pytest.mark.parametrize("mode", [OWNERS, None])
def test_killed_before_it_has_a_key_it_is_still_a_new_cas(tmp_path, monkeypatch, mode):
    with monkeypatch.context() as patched:
        patched.setattr("strongroom.cas.service.server.Authority", killed)
        with pytest.raises(Killed):
            prepare(tmp_path, restart=mode)
    if mode is not None:
        with pytest.raises(UnauthorizedError):
            prepare(tmp_path, restart=Restart())
    with prepare(tmp_path, restart=mode) as service:
        assert service.gate.ready
        assert service.authority.marked is (mode is not None)
    with prepare(tmp_path) as service:
        assert service.gate.ready is (mode is None)


class Killed(BaseException):
    pass


def killed(*args, **options):
    raise Killed


def test_a_mode_that_was_given_later_is_marked_too(tmp_path):
    with prepare(tmp_path) as service:
        assert not service.authority.holds_mode
    with prepare(tmp_path, restart=OWNERS) as service:
        assert service.authority.holds_mode
        root = service.authority.cas_root
    with prepare(tmp_path) as service:
        assert service.authority.holds_mode
        assert not service.authority.marked  # whom its operators are, its host said
        assert service.authority.cas_root == root


VKEY = "w.example/1+855e2dec+BMHBbmivUDzGlPZirXXbtbg02kREB8w3DbEWpVu9i+wB"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"mode": "nobody"}, "wanted one of owner, witness, tpm, trust-disk"),
        ({"mode": "owner"}, "no operators"),
        ({"mode": "owner", "operators": ("sha256:00",), "needed": 1}, "wanted sha256:<64 hex digits>"),
        ({"mode": "owner", "operators": OWNERS.operators, "needed": 0}, "0 of 3 needed"),
        ({"mode": "owner", "operators": OWNERS.operators, "needed": 4}, "4 of 3 needed"),
        ({"mode": "owner", "operators": OWNERS.operators[:1] * 2, "needed": 1}, "each once"),
        ({"mode": "witness"}, "0 witnesses that count"),
        ({"mode": "trust-disk", "witnesses": (VKEY,), "quorum": 1}, "1 witnesses that count"),
        ({"mode": "witness", "witnesses": ("w",), "quorum": 1}, "wanted NAME"),
        ({"mode": "tpm"}, "an index of the TPM"),
        ({"mode": "tpm", "tpm_index": 5}, "tpm index: got 0x5"),
        ({"mode": "tpm", "tpm_index": DEFAULT_INDEX, "tpm_name": "zz"}, "not hexadecimal"),
    ],
)
def test_a_mode_has_what_it_needs(fields, problem):
    with pytest.raises(StrongroomError, match=problem):
        Restart(**fields)


@pytest.mark.parametrize(
    "wire",
    [
        None,
        [],
        {},
        {"mode": 1},
        {"mode": "owner", "operators": [1]},
        {"mode": "trust-disk", "more": 1},
        {"mode": "tpm", "tpm_index": "1"},
    ],
)
def test_what_is_no_mode_is_refused(wire):
    with pytest.raises((FormatError, UsageError)):
        Restart.from_wire(wire)


def test_a_mode_is_its_wire_form():
    for mode in (
        OWNERS,
        Restart(),
        Restart("witness", witnesses=(VKEY,), quorum=1),
        Restart("tpm", tpm_index=DEFAULT_INDEX),
    ):
        assert Restart.from_wire(mode.to_wire()) == mode


needs_tpm = pytest.mark.skipif(lacking() is not None, reason=f"{lacking()} is not installed: `make setup` says how")
_indices = itertools.count(DEFAULT_INDEX)


@pytest.fixture(scope="module")
def tpms(tmp_path_factory):
    maker = tmp_path_factory.mktemp("maker")
    with SoftwareTpm.start(maker, state=maker / "one") as one, SoftwareTpm.start(maker, state=maker / "other") as other:
        yield one, other


@pytest.fixture
def tpm(tpms, monkeypatch):
    """Use the first TPM, and the other one from when this is called."""
    monkeypatch.setenv("STRONGROOM_TPM", tpms[0].tcti)
    return lambda: monkeypatch.setenv("STRONGROOM_TPM", tpms[1].tcti)


@pytest.fixture
def by_tpm():
    return Restart("tpm", (OPERATORS[0].public.fingerprint,), 1, tpm_index=next(_indices))


@needs_tpm
def test_a_tpm_opens_a_log_that_extends_what_it_remembers(tpm, tmp_path, by_tpm):
    head = begin(tmp_path, by_tpm)
    with cas_in(tmp_path) as cas, world_in(cas) as world:
        assert world.client.gate()["ready"]
        assert head_of(world.client).size > head.size


@needs_tpm
def test_the_tpm_is_told_of_the_last_entry_at_the_end(tpm, tmp_path, by_tpm):
    begin(tmp_path, by_tpm)
    with prepare(tmp_path / "cas") as service:
        service.store.record("word", "strongroom/cas", {}, now=1)
        head = service.store.head()
    again = prepare(tmp_path / "cas")
    assert again.tpm.read() == head
    again.close()


@needs_tpm
def test_the_tpm_is_told_nothing_before_the_head_is_confirmed(tpm, tmp_path, by_tpm):
    begin(tmp_path, by_tpm)
    service = prepare(tmp_path / "cas")
    service.gate._ready = False  # as where the TPM did not answer at the start, and operators are waited for
    seen = service.tpm.read()
    service.tpm.write()
    assert service.tpm.read() == seen
    service.gate.open()
    service.tpm.write()
    assert service.tpm.read() == service.store.head() != seen
    service.close()


@needs_tpm
def test_operators_stand_in_for_a_tpm_that_is_lost(tpm, tmp_path, by_tpm):
    head = begin(tmp_path, by_tpm)
    tpm()
    with cas_in(tmp_path) as cas, cas.owner(OPERATORS[0]) as client:
        assert client.confirm_head(head)["ready"]
        assert client.vote_restart(by_tpm)["changed"]
    with cas_in(tmp_path) as cas, cas.owner() as client:
        assert client.gate()["ready"]


@needs_tpm
def test_a_mode_that_was_voted_for_is_in_force_at_once(tpm, tmp_path, by_tpm):
    begin(tmp_path, Restart("trust-disk", by_tpm.operators, 1))
    with (
        prepare(tmp_path / "cas") as service,
        OwnerClient(service.address.url, cas_root=service.address.cas_root, owner=OPERATORS[0]) as client,
    ):
        assert client.vote_restart(by_tpm)["changed"]
        service.store.record("word", "strongroom/cas", {}, now=1)
        service.tpm.write()
        assert service.tpm.read() == service.store.head()


@needs_tpm
def test_an_index_that_somebody_else_made_is_not_taken(tpm, tmp_path, by_tpm):
    begin(tmp_path / "one", by_tpm)
    with pytest.raises(StrongroomError, match="is in use"):
        prepare(tmp_path / "two", restart=by_tpm)


@needs_tpm
def test_a_shared_database_is_not_for_a_tpm(tpm, tmp_path, by_tpm):
    with pytest.raises(UsageError, match="is for a CAS whose database is its own"):
        _start_mode(Shared(), Settings(restart=by_tpm), bytes(32), marked=False, now=None)


class Shared:
    """A store with nothing in it, for several."""

    kind = "PostgreSQL"

    def row(self, *key):
        return None
