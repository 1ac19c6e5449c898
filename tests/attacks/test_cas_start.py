"""A host that starts a CAS: on an old database, in a weaker mode, twice, or with code of its own."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from strongroom.attest.binding import EXPORTER_LABEL, canonical, parse_canonical
from strongroom.attest.claims import registers_measurement
from strongroom.attest.evidence import Evidence
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.tee import tpm_nv
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.attest.tee.tpm import Tpm
from strongroom.cas import OwnerClient
from strongroom.cas.api.peers import PeerWatch
from strongroom.cas.client.appraisal import appraise_first
from strongroom.cas.client.own_evidence import appraise_cas
from strongroom.cas.client.verification import verify_cas
from strongroom.cas.log.head import Head
from strongroom.cas.log.note import Checkpoint
from strongroom.cas.log.witness import Witness
from strongroom.cas.service.server import prepare
from strongroom.cas.start.mode import Restart, confirmation
from strongroom.cas.start.tpm_head import DEFAULT_INDEX
from strongroom.cas.wire import b64, bytes_field
from strongroom.cli.cas.witness import cosign_head
from strongroom.crypto import SigningKey
from strongroom.errors import (
    AttestationError,
    BindingError,
    MeasurementError,
    NotReadyError,
    RollbackError,
    SimulatedEnclaveError,
    StrongroomError,
    UnauthorizedError,
    UsageError,
    VerificationError,
)
from strongroom.testing.swtpm import SoftwareTpm, lacking
from tests.cas.postgres import binaries, postgres_server
from tests.cas.world import MEASURED, cas_in, document

OPERATOR = SigningKey.generate()
OWNER_MODE = Restart("owner", (OPERATOR.public.fingerprint,), 1)
needs_tpm = pytest.mark.skipif(lacking() is not None, reason=f"{lacking()} is not installed: `make setup` says how")


def head_of(client: OwnerClient) -> Head:
    checkpoint = Checkpoint.parse(client.log_head()[0].text)
    return Head(checkpoint.size, checkpoint.root)


def grow(directory: Path, **settings: Any) -> Head:
    """Start a CAS, have it write an entry, and end it; the head of its log."""
    service = prepare(directory / "cas", **settings)
    try:
        service.store.record("word", "acme/train", {}, now=1)
        if service.tpm is not None:
            service.tpm.write()
        return service.store.head()
    finally:
        service.close()


def copy_of(directory: Path, name: str) -> Path:
    """All that the host has of a CAS that does not run."""
    shutil.copytree(directory / "cas", directory / name)
    return directory / name


def put_back(directory: Path, copy: Path) -> None:
    shutil.rmtree(directory / "cas")
    shutil.copytree(copy, directory / "cas")


# The database put back, in each mode


def test_an_old_database_is_not_confirmed_by_an_operator_who_has_seen_more(tmp_path, caplog):
    first = grow(tmp_path, restart=OWNER_MODE)
    old = copy_of(tmp_path, "old")
    with cas_in(tmp_path) as cas, cas.owner(OPERATOR) as client:
        client.confirm_head(first)
        client.apply(document(OPERATOR, name="later/one"))
        seen = head_of(client)
    put_back(tmp_path, old)
    with cas_in(tmp_path) as cas, cas.owner(OPERATOR) as client:
        with pytest.raises(RollbackError, match="were seen"):
            client.confirm_head(seen)
        assert "nothing is served any more" in caplog.text
        # Not even by one who has seen less, and it is not told who he is.
        with pytest.raises(RollbackError):
            client.policy("later/one")
        client.confirm_head(first)
        assert client.gate()["state"] == "forked"
        assert not client.gate()["ready"]


def test_an_old_database_is_not_cosigned_by_a_witness(tmp_path):
    witness = Witness(tmp_path / "w", name="w.example/1")
    mode = Restart("witness", witnesses=(str(witness.key),), quorum=1)
    grow(tmp_path, restart=mode)
    old = copy_of(tmp_path, "old")
    with cas_in(tmp_path) as cas, cas.owner() as client:
        client.put_cosigned(cosign_head(witness, client, cas.address.cas_root, now=1))
        client.apply(document(client._require_owner(), name="later/one"))
        cosign_head(witness, client, cas.address.cas_root, now=2)
    put_back(tmp_path, old)
    with cas_in(tmp_path) as cas, cas.owner() as client:
        with pytest.raises(RollbackError):
            cosign_head(witness, client, cas.address.cas_root, now=3)
        assert client.gate()["state"] == "awaiting"
        with pytest.raises(NotReadyError):
            client.policy("later/one")


@needs_tpm
def test_a_tpm_finds_an_old_database_and_is_not_replaced(tmp_path, monkeypatch):
    with SoftwareTpm.start(tmp_path / "maker") as tpm:
        monkeypatch.setenv("STRONGROOM_TPM", tpm.tcti)
        grow(tmp_path, restart=Restart("tpm", tpm_index=DEFAULT_INDEX))
        old = copy_of(tmp_path, "old")
        grow(tmp_path)
        put_back(tmp_path, old)
        with pytest.raises(RollbackError, match="were seen"):
            prepare(tmp_path / "cas")
        # The machine's owner removes the index, and makes one that looks the same and remembers less.
        with Tpm.open() as opened:
            index = opened._esapi.tr_from_tpmpublic(DEFAULT_INDEX)
            opened._esapi.nv_undefine_space(index)
        with pytest.raises(RollbackError, match="is missing; the TPM was cleared, or it is another machine's"):
            prepare(tmp_path / "cas")
        with Tpm.open() as opened:
            tpm_nv.define(opened, DEFAULT_INDEX, 40, b"guess")
            tpm_nv.write(opened, DEFAULT_INDEX, b"guess", bytes(40))
        with pytest.raises(RollbackError, match="was made anew by somebody else"):
            prepare(tmp_path / "cas")


@needs_tpm
def test_a_cas_made_anew_under_the_same_secret_does_not_make_the_tpm_forget(tmp_path, monkeypatch):
    with SoftwareTpm.start(tmp_path / "maker") as tpm:
        monkeypatch.setenv("STRONGROOM_TPM", tpm.tcti)
        mode = Restart("tpm", tpm_index=DEFAULT_INDEX)
        grow(tmp_path, restart=mode)
        old = copy_of(tmp_path, "old")
        grow(tmp_path)
        for name in ("cas.sqlite", "cas.sqlite-wal", "cas.sqlite-shm", "root.key"):
            (tmp_path / "cas" / name).unlink(missing_ok=True)
        (tmp_path / "cas" / "cas.new").touch()
        with pytest.raises(UsageError, match="is in use"):
            prepare(tmp_path / "cas", restart=mode)
        with prepare(tmp_path / "cas", restart=Restart("tpm", tpm_index=DEFAULT_INDEX + 1)):
            pass
        put_back(tmp_path, old)
        with pytest.raises(RollbackError, match="were seen"):
            prepare(tmp_path / "cas")


@needs_tpm
def test_a_copy_that_was_started_early_does_not_make_the_tpm_forget(tmp_path, monkeypatch):
    """The host starts a CAS and a copy of it while the TPM remembers the head of both, and lets one of them wait."""
    with SoftwareTpm.start(tmp_path / "maker") as tpm:
        monkeypatch.setenv("STRONGROOM_TPM", tpm.tcti)
        grow(tmp_path, restart=Restart("tpm", tpm_index=DEFAULT_INDEX))
        old = copy_of(tmp_path, "old")
        early = prepare(old)
        try:
            assert early.gate.ready
            early.tpm.write()
            seen = grow(tmp_path)
            early.store.record("word", "acme/train", {}, now=2)
            early.tpm.write()
            assert early.gate.state == "forked"
            assert early.tpm.read() == seen
        finally:
            early.close()
        with pytest.raises(RollbackError, match="were seen"):
            prepare(old)
        service = prepare(tmp_path / "cas")
        assert (service.gate.ready, service.tpm.read()) == (True, seen)
        service.close()


def test_an_old_database_goes_unseen_where_the_disk_is_trusted(tmp_path):
    """What the warning says: only clients who have seen more find out."""
    grow(tmp_path)
    old = copy_of(tmp_path, "old")
    seen = grow(tmp_path)
    put_back(tmp_path, old)
    with cas_in(tmp_path) as cas, cas.owner() as newcomer:
        assert head_of(newcomer).size < seen.size
        assert newcomer.gate()["ready"]


# What confirmed an earlier start


def test_a_confirmation_of_an_earlier_start_confirms_nothing(tmp_path):
    head = grow(tmp_path, restart=OWNER_MODE)
    recorded = {}
    with cas_in(tmp_path) as cas, cas.owner(OPERATOR) as client:
        post = client._http.post
        client._http.post = lambda path, value, **rest: (recorded.update({path: value}), post(path, value, **rest))[1]
        client.confirm_head(head)
    with cas_in(tmp_path) as cas, cas.owner() as client:
        with pytest.raises(VerificationError):
            client._http.post("/v1/gate/confirmations", recorded["/v1/gate/confirmations"])
        # Nor does one for another CAS, or for another head than it says.
        start = bytes.fromhex(client.gate()["start"])
        for root, shown in ((OPERATOR.public.fingerprint, head), (cas.address.cas_root, Head(0, head.root))):
            wire = {"key": b64(OPERATOR.public.spki), "head": str(head)}
            wire["signature"] = b64(OPERATOR.sign(confirmation(root, start, shown)))
            with pytest.raises(VerificationError):
                client._http.post("/v1/gate/confirmations", wire)
        assert not client.gate()["ready"]


def test_a_cosignature_of_an_earlier_start_confirms_nothing(tmp_path):
    witness = Witness(tmp_path / "w", name="w.example/1")
    mode = Restart("witness", witnesses=(str(witness.key),), quorum=1)
    grow(tmp_path, restart=mode)
    notes = []
    old = copy_of(tmp_path, "old")
    with cas_in(tmp_path) as cas, cas.owner() as client:
        notes.append(cosign_head(witness, client, cas.address.cas_root, now=1))
        client.put_cosigned(notes[0])
        assert client.gate()["ready"]
        notes.append(cosign_head(witness, client, cas.address.cas_root, now=2))
    put_back(tmp_path, old)
    with cas_in(tmp_path) as cas, cas.owner() as client:
        assert client.put_cosigned(notes[0]) == ["w.example/1"]  # it is one of this very head: kept, and counts nothing
        with pytest.raises(RollbackError):
            client.put_cosigned(notes[1])
        assert not client.gate()["ready"]
    stranger = Witness(tmp_path / "s", name="w.example/1")
    with cas_in(tmp_path, witnesses=[stranger.key]) as cas, cas.owner() as client:
        client.put_cosigned(cosign_head(stranger, client, cas.address.cas_root, now=2**40))
        assert not client.gate()["ready"]


# Another mode


@pytest.mark.parametrize(
    "chosen",
    [
        Restart(),
        Restart("owner", (SigningKey.generate().public.fingerprint,), 1),
        Restart("owner", (*OWNER_MODE.operators, SigningKey.generate().public.fingerprint), 1),
    ],
)
def test_a_host_does_not_choose_who_confirms(tmp_path, chosen):
    grow(tmp_path, restart=OWNER_MODE)
    with pytest.raises(UnauthorizedError, match="this CAS's start mode is owner"):
        prepare(tmp_path / "cas", restart=chosen)
    with cas_in(tmp_path) as cas, cas.owner() as host, pytest.raises(NotReadyError):
        host.vote_restart(chosen)


def test_a_database_of_before_the_mode_was_written_does_not_do(tmp_path):
    """The host copies a CAS while it is made: its database is there, and holds nothing yet."""
    prepare(tmp_path / "empty" / "cas").close()
    made = tmp_path / "made"
    made.mkdir()
    # The same root secret and an empty database of it, as a copy of the moment before would have.
    secret = (tmp_path / "empty" / "cas" / "master.key").read_bytes()
    empty = copy_of(tmp_path / "empty", "copy")
    (empty / "root.key").unlink()
    shutil.copytree(empty, made / "cas")
    grow(made, restart=OWNER_MODE)
    assert (made / "cas" / "master.key").read_bytes() == secret
    root_key = (made / "cas" / "root.key").read_bytes()
    put_back(made, empty)
    (made / "cas" / "root.key").write_bytes(root_key)
    for mode in (None, Restart(), OWNER_MODE):
        with pytest.raises(RollbackError, match="has a start mode, and its database holds none"):
            prepare(made / "cas", restart=mode)


def test_a_vote_is_for_one_start_and_one_mode(tmp_path):
    with cas_in(tmp_path, restart=OWNER_MODE) as cas, cas.owner(OPERATOR) as client:
        post, recorded = client._http.post, {}
        client._http.post = lambda path, value, **rest: (recorded.update({path: value}), {"changed": False})[1]
        client.vote_restart(Restart("trust-disk", OWNER_MODE.operators, 1))
        vote = recorded["/v1/gate/restart"]
        with pytest.raises(VerificationError):
            post("/v1/gate/restart", {**vote, "restart": Restart().to_wire()})
    with cas_in(tmp_path) as cas, cas.owner(OPERATOR) as client:
        client.confirm_head(head_of(client))
        with pytest.raises(VerificationError):
            client._http.post("/v1/gate/restart", vote)
        assert client.gate()["restart"]["mode"] == "owner"


def test_a_vote_is_for_one_change(tmp_path):
    other = Restart("trust-disk", OWNER_MODE.operators, 1)
    with cas_in(tmp_path, restart=OWNER_MODE) as cas, cas.owner(OPERATOR) as client:
        post, votes = client._http.post, []
        client._http.post = lambda path, value, **rest: (votes.append(value), post(path, value, **rest))[1]
        assert client.vote_restart(other)["changed"]
        assert client.vote_restart(OWNER_MODE)["changed"]
        with pytest.raises(VerificationError):
            post("/v1/gate/restart", votes[0])


# Two instances


def test_forked_instances_are_closed_by_each_other(tmp_path):
    grow(tmp_path)
    copy_of(tmp_path, "fork")
    with prepare(tmp_path / "cas") as one, prepare(tmp_path / "fork") as two:
        for service in (one, two):
            key = SigningKey.generate()
            with OwnerClient(service.address.url, cas_root=service.address.cas_root, owner=key) as client:
                client.apply(document(key, name=f"tenant-{service.port}/train"))
        for service, peer in ((one, two), (two, one)):
            watch = PeerWatch(service.store, service.gate, service.authority, [peer.address.url])
            watch.check()
            watch.close()
            assert service.gate.state == "forked"
            client = OwnerClient(service.address.url, cas_root=service.address.cas_root)
            with client, pytest.raises(RollbackError, match="fork"):
                client.policy(f"tenant-{service.port}/train")


@pytest.mark.skipif(binaries() is None, reason="there is no PostgreSQL server: `make setup` says how")
def test_whoever_runs_the_database_cannot_show_each_instance_another(tmp_path):
    with postgres_server() as server:
        urls = [server.schema(), server.schema()]
        prepare(tmp_path / "one", database=urls[0]).close()
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        mine, theirs = (re.search(r"search_path%3D(\w+)", url)[1] for url in urls)
        for (table,) in server.sql(f"SELECT tablename FROM pg_tables WHERE schemaname = '{mine}'"):  # noqa: S608
            server.sql(f"CREATE TABLE {theirs}.{table} (LIKE {mine}.{table} INCLUDING ALL)")
            server.sql(f"INSERT INTO {theirs}.{table} SELECT * FROM {mine}.{table}")  # noqa: S608
        with (
            prepare(tmp_path / "one", database=urls[0]) as one,
            prepare(tmp_path / "two", database=urls[0]) as honest,
            prepare(tmp_path / "two", database=urls[1]) as forked,
        ):
            for service, name in ((one, "a/b"), (honest, "c/d"), (forked, "e/f")):
                service.store.record("word", name, {}, now=1)
            for peer, state in ((honest, "ready"), (forked, "forked")):
                watch = PeerWatch(one.store, one.gate, one.authority, [peer.address.url])
                watch.check()
                watch.close()
                assert one.gate.state == state


# A CAS of the host's own


@pytest.fixture(scope="module")
def vendor(tmp_path_factory):
    return SimulatedVendor.open(tmp_path_factory.mktemp("vendor"), now=int(time.time()))


@pytest.fixture(scope="module")
def wanted(vendor):
    return ReferenceValues(("simulated",), (registers_measurement(MEASURED),), allow_simulated=vendor.root_digest)


@pytest.fixture(scope="module")
def honest(tmp_path_factory, vendor):
    with cas_in(tmp_path_factory.mktemp("honest"), attester=SimulatedAttester(vendor, MEASURED)) as cas:
        yield cas


def refused(cas, wanted, error):
    """Nothing gets to that CAS, whose root the client was told."""
    key = SigningKey.generate()
    address = cas.address
    client = OwnerClient(address.url, cas_root=address.cas_root, owner=key, reference=wanted)
    with client, pytest.raises(error):
        client.apply(document(key, name="secret/plans"))
    with cas.owner() as looking, pytest.raises(StrongroomError, match="holds none of the name"):
        looking.policy("secret/plans")


def test_a_host_s_own_cas_under_evidence_of_other_code(tmp_path, vendor, wanted):
    other = SimulatedAttester(vendor, {**MEASURED, "rtmr3": bytes(48)})
    with cas_in(tmp_path, attester=other) as cas:
        refused(cas, wanted, MeasurementError)
        with pytest.raises(MeasurementError):
            verify_cas(cas.address.url, wanted)


def test_a_host_s_own_cas_under_a_vendor_of_its_own(tmp_path, wanted):
    own = SimulatedVendor.open(tmp_path / "own", now=int(time.time()))
    with cas_in(tmp_path, attester=SimulatedAttester(own, MEASURED)) as cas:
        refused(cas, wanted, AttestationError)
        with pytest.raises((SimulatedEnclaveError, VerificationError)):
            verify_cas(cas.address.url, wanted)


class Relay:
    """Evidence that the host gets from the true CAS, for whatever it is asked."""

    tee = "simulated"

    def __init__(self, honest):
        self.honest = honest

    def evidence(self, report_data):
        with self.honest.owner() as client:
            answer = client._http.post("/v1/evidence", {"nonce": "07" * 32})
        return Evidence.from_wire(answer["evidence"])


def test_a_host_s_own_cas_under_evidence_of_the_true_one(tmp_path, honest, wanted):
    with cas_in(tmp_path, attester=Relay(honest)) as cas:
        refused(cas, wanted, BindingError)


@pytest.mark.parametrize("what", ["other claims", "true claims"])
def test_evidence_relayed_over_another_connection(tmp_path, honest, wanted, what):
    """The host asks the true CAS with the client's own nonce, and hands on all that it answers."""
    asked = {}

    def relay(stream, ask):
        def relayed(path, value):
            asked.update(value)
            with honest.owner() as client:
                return client._http.post(path, dict(value))

        root = honest.address.cas_root if what == "true claims" else None
        appraise_first(wanted, root)(stream, relayed)

    with cas_in(tmp_path) as host, host.owner() as client:
        client._http._greetings = [relay]
        with pytest.raises(BindingError, match=r"claims\.(spki|cas_root)"):
            client.describe()
        assert asked["nonce"]


def test_the_claims_are_bound_to_the_evidence(honest, wanted):
    """Right key and root in the claims, which the evidence is not over; and right claims over another exporter."""
    with honest.owner() as client:
        stream = client._http.connect()
        answer = client._http.post("/v1/evidence", {"nonce": "05" * 32})
        binder = stream.export(EXPORTER_LABEL, b"cas")
        facts = {
            "nonce": b"\x05" * 32,
            "binder": binder,
            "spki": stream.peer[0].key.fingerprint,
            "cas_root": honest.address.cas_root,
            "now": int(time.time()),
        }
        assert appraise_cas(answer, wanted, **facts).cas_root == honest.address.cas_root
        claims = parse_canonical(bytes_field(answer, "claims"))
        for changes, error in (
            ({"nonce": bytes(32)}, BindingError),
            ({"binder": b"\x01" * 32}, BindingError),
            ({"spki": OPERATOR.public.fingerprint}, BindingError),
            ({"cas_root": OPERATOR.public.fingerprint}, BindingError),
        ):
            with pytest.raises(error):
                appraise_cas(answer, wanted, **{**facts, **changes})
        for field, value in (
            ("restart", "owner"),
            ("hpke", "00" * 32),
            ("policy", "strongroom/cas"),
            ("role", "program"),
        ):
            bent = {**answer, "claims": b64(canonical({**claims, field: value}))}
            with pytest.raises(BindingError):
                appraise_cas(bent, wanted, **facts)
