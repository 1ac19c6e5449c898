"""Somebody wants what a hospital granted to others, or more than was granted, or for longer."""

from __future__ import annotations

import datetime as dt
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from strongroom.attest.claims import registers_measurement
from strongroom.attest.tee.simulated import SimulatedAttester, SimulatedVendor
from strongroom.cas.policy.grants import SignedGrant
from strongroom.cas.policy.version import parse_policy
from strongroom.crypto import SigningKey
from strongroom.errors import (
    ConflictError,
    GrantError,
    PolicyError,
    StrongroomError,
    UnauthorizedError,
    VerificationError,
)
from strongroom.sealed import Root
from tests.cas.exports import RECORDS, hospital_in, importer_in, importing
from tests.cas.owners import KEYS, signed_by, table
from tests.cas.world import MEASURED, Clock, cas_in, document

ROOT = Root(1, bytes(32))
OTHER = {**MEASURED, "mrtd": b"\x77" * 48}


@pytest.fixture(scope="module")
def cas(tmp_path_factory):
    with cas_in(tmp_path_factory.mktemp("cas")) as running:
        yield running


@pytest.fixture
def hospital(cas):
    with hospital_in(cas) as made:
        yield made


@pytest.fixture
def importer(cas, hospital):
    """One that has its grant."""
    with importer_in(cas, hospital) as made:
        hospital.client.put_grant(hospital.signed(made))
        yield made


def refused(world, why, **changes):
    with world.session(**changes) as session, pytest.raises(GrantError, match=why):
        session.attest()


@contextmanager
def owned(cas, threshold, *names):
    """A hospital with owners, and one that imports of it."""
    with hospital_in(cas) as hospital:
        next_version(hospital, table(threshold, names) + RECORDS, *names)
        with importer_in(cas, hospital) as importer:
            yield hospital, importer


def next_version(hospital, more, *names):
    before = hospital.client.policy(hospital.name)
    changes = {"name": hospital.name, "version": before.version + 1, "previous": before.digest}
    text = document(hospital.key, **changes, more=more, vendor_root="sha256:" + "0f" * 32)
    hospital.client.apply(text, signed_by(parse_policy(text), *names))


def test_fewer_owners_than_the_threshold_grant_nothing(cas):
    with owned(cas, 2, "alice", "bob", "carol") as (hospital, importer):
        alone = hospital.signed(importer)
        one = alone.signed_by(KEYS["alice"], hospital.client.policy(hospital.name))
        twice = replace(one, signatures=one.signatures * 2)
        without = replace(hospital.signed(importer, KEYS["alice"], KEYS["bob"]), administrator=None, signature=b"")
        for signed in (alone, one, twice, without):
            with pytest.raises(StrongroomError):
                hospital.client.put_grant(signed)
        refused(importer, "nobody has granted")


def test_another_s_signature_is_no_owner_s(cas, hospital):
    with importer_in(cas, hospital) as importer:
        mallory = SigningKey.generate()
        signed = hospital.signed(importer)
        forged = replace(signed, administrator=mallory.public, signature=mallory.sign(signed.grant.to_bytes()))
        with pytest.raises(GrantError, match="no administrator"):
            hospital.client.put_grant(forged)
        stolen = replace(forged, administrator=signed.administrator)
        with pytest.raises(VerificationError, match="does not match"):
            hospital.client.put_grant(stolen)


@pytest.mark.parametrize(
    "change",
    [
        {"resources": ("vault:patients", "secret:db", "secret:drawn")},
        {"measurements": ("77" * 48,)},
        {"recipients": ("mallory/shop",)},
        {"purpose": "sell it"},
        {"expires": 4_000_000_000},
        {"serial": 4_000_000_000},
        {"importer": "mallory/shop"},
        {"reference": "sha256:" + "00" * 32},
    ],
)
def test_a_signature_is_of_one_grant_only(cas, hospital, change):
    with importer_in(cas, hospital) as importer:
        signed = hospital.signed(importer)
        with pytest.raises(VerificationError, match="does not match"):
            hospital.client.put_grant(replace(signed, grant=replace(signed.grant, **change)))


def test_a_grant_is_worth_nothing_in_another_policy_s_name(cas, hospital, importer):
    [(signed, _)] = hospital.client.grants(hospital.name)
    # Under the attacker's own policy, as the exporter and as the importer.
    with hospital_in(cas) as own, pytest.raises(GrantError, match=r"grant\.from"):
        own.client._put(f"/v1/policies/{own.name}/grants/{signed.grant.id}", signed.to_wire())
    with importer_in(cas, hospital) as thief:
        refused(thief, "nobody has granted")


def test_another_program_gets_nothing(cas, importer):
    measurement = registers_measurement(OTHER)
    importer.renew(**changes_of(importer), reference={"measurements": [registers_measurement(MEASURED), measurement]})
    refused(importer, "not for the measurement", attester=SimulatedAttester(cas.vendor, OTHER))


def test_evidence_is_appraised_as_the_owners_saw_it(cas, hospital, importer, tmp_path):
    """The importer's policy may name another simulated vendor: whoever has its key quotes any measurement."""
    mallory = SimulatedVendor.open(tmp_path, now=int(cas.clock()))
    importer.renew(**changes_of(importer), vendor_root=mallory.root_digest)
    refused(importer, r"\[reference\] is not that of the grant", attester=SimulatedAttester(mallory, MEASURED))


def test_another_purpose_gets_nothing(importer):
    importer.renew(**changes_of(importer) | {"purpose": "sell it"})
    refused(importer, "purpose")


def test_outputs_go_to_no_more_than_was_granted(importer):
    importer.renew(**changes_of(importer) | {"recipients": ["acme/serve", "mallory/shop"]})
    refused(importer, "no outputs go to mallory/shop")
    importer.renew(**changes_of(importer) | {"recipients": []})
    with importer.session() as session:
        session.attest()


def test_more_than_was_granted_is_not_imported(hospital, importer):
    more = importing(hospital.name) + f'[[secrets]]\nname = "drawn"\nenvironment = "E"\nfrom = "{hospital.name}"\n'
    importer.renew(**changes_of(importer) | {"more": more})
    refused(importer, "does not name secret:drawn")


def test_a_grant_ends_in_its_time_and_takes_the_connection_along(tmp_path):
    clock = Clock(time.time())
    with cas_in(tmp_path, clock) as cas, hospital_in(cas) as hospital, importer_in(cas, hospital) as importer:
        hospital.client.put_grant(hospital.signed(importer, expires=int(clock.now) + 60))
        with importer.session() as session:
            session.attest()
            session.anchor("patients").read()
            clock.now += 60
            with pytest.raises(GrantError, match="has expired"):
                session.anchor("patients").read()


def test_a_withdrawn_grant_cannot_be_put_back(hospital, importer):
    [(signed, _)] = hospital.client.grants(hospital.name)
    hospital.client.withdraw_grant(hospital.name, signed.grant.id)
    with pytest.raises(ConflictError, match="withdrawn, or replaced"):
        hospital.client.put_grant(signed)
    older = hospital.signed(importer, serial=signed.grant.serial - 1)
    with pytest.raises(ConflictError, match="serial"):
        hospital.client.put_grant(older)
    refused(importer, "was withdrawn")


def test_a_grant_of_owners_who_have_left_is_none(cas):
    with owned(cas, 1, "alice", "bob") as (hospital, importer):
        hospital.client.put_grant(hospital.signed(importer, KEYS["alice"]))
        with importer.session() as session:
            session.attest()
            next_version(hospital, table(1, ("bob", "carol")) + RECORDS, "alice", "bob")
            with pytest.raises(GrantError, match="no owner"):
                session.anchor("patients").read()
        assert [state for _, state in hospital.client.grants(hospital.name)] == ["not signed by the present owners"]


def test_a_grant_of_an_administrator_who_has_left_is_none(cas):
    clerk = SigningKey.generate()
    named = f'[[administrators]]\nname = "clerk"\nkey = "{clerk.public.fingerprint}"\nmay = ["grants"]\n'
    with hospital_in(cas, more=RECORDS + named) as hospital, importer_in(cas, hospital) as importer:
        policy = hospital.client.policy(hospital.name)
        hospital.client.put_grant(SignedGrant(hospital.grant(importer)).signed_by(clerk, policy))
        with importer.session() as session:
            session.attest()
            next_version(hospital, RECORDS)
            with pytest.raises(GrantError, match="no administrator"):
                session.renew()


def test_an_expired_policy_exports_nothing(tmp_path):
    clock = Clock(time.time())
    with cas_in(tmp_path, clock) as cas, hospital_in(cas) as hospital, importer_in(cas, hospital) as importer:
        hospital.client.put_grant(hospital.signed(importer))
        ends = dt.datetime.fromtimestamp(int(clock.now) + 60, dt.UTC).isoformat()
        before = hospital.client.policy(hospital.name)
        text = document(hospital.key, name=hospital.name, version=3, previous=before.digest, more=RECORDS)
        hospital.client.apply(text.replace("[reference]", f"expires = {ends}\n[reference]", 1))
        with importer.session() as session:
            session.attest()
            session.anchor("patients").read()
            clock.now += 60
            with pytest.raises(GrantError, match="a policy that has expired"):
                session.anchor("patients").read()


def test_an_importer_reads_no_other_anchor_and_moves_none(hospital, importer):
    hospital.client.anchor(hospital.name, "patients").advance(None, ROOT)
    with importer.session() as session:
        session.attest()
        for name in ("other", "db"):
            answer = session.request("GET", f"/v1/policies/{hospital.name}/anchors/{name}")
            assert answer.status == 403
        with pytest.raises(UnauthorizedError):
            session.anchor("patients").advance(ROOT, Root(2, bytes(32)))


def test_the_importer_s_administrator_gets_no_key_of_the_exporter_s(hospital, importer):
    """Neither stored under the import's name, nor read: there is no way to read a secret out."""
    for name in ("vault:patients", "db"):
        with pytest.raises(PolicyError, match="to be stored"):
            importer.client.put_secret(importer.name, name, bytes(32))
    answer = importer.client._http.request("GET", f"/v1/policies/{hospital.name}/secrets/db")
    assert answer.status == 405


def test_an_unsigned_grant_is_no_grant(hospital, importer):
    with pytest.raises(StrongroomError):
        hospital.client.put_grant(SignedGrant(hospital.grant(importer, serial=1 << 40)))


def changes_of(world):
    policy = world.policy
    return {
        "purpose": policy.purpose,
        "recipients": list(policy.recipients),
        "more": importing(next(v.source for v in policy.vaults)),
    }


# An administrator who may grant one thing


@pytest.fixture
def limited(cas):
    """A hospital, one that imports of it, and the client of an administrator who may grant another secret alone."""
    key = SigningKey.generate()
    more = f'[[administrators]]\nname = "m"\nkey = "{key.public.fingerprint}"\nmay = ["grants"]\n'
    more = RECORDS + more + 'resources = ["secret:drawn"]\n'
    with (
        hospital_in(cas, more=more) as hospital,
        importer_in(cas, hospital) as importer,
        cas.owner(key) as client,
    ):
        yield hospital, importer, client, key


def test_grants_of_other_resources_are_neither_seen_nor_ended(limited):
    hospital, importer, client, key = limited
    signed = hospital.signed(importer)
    hospital.client.put_grant(signed)
    assert client.grants(hospital.name) == []
    with pytest.raises(GrantError):
        client._http.get(f"/v1/policies/{hospital.name}/grants/{signed.grant.id}")
    with pytest.raises(UnauthorizedError, match="has not the right 'grants' over"):
        client.withdraw_grant(hospital.name, signed.grant.id)
    other = hospital.grant(importer, resources=("secret:drawn",), serial=signed.grant.serial + 1)
    with pytest.raises(UnauthorizedError, match="has not the right 'grants' over"):
        client.put_grant(SignedGrant(other).signed_by(key, hospital.client.policy(hospital.name)))
    with importer.session() as session:
        session.attest()
    hospital.client.withdraw_grant(hospital.name, signed.grant.id)
    client.put_grant(SignedGrant(other).signed_by(key, hospital.client.policy(hospital.name)))
    assert [(each.grant, state) for each, state in client.grants(hospital.name)] == [(other, "in force")]


def test_no_serial_shuts_out_those_to_come(cas, limited):
    hospital, importer, client, key = limited
    policy = hospital.client.policy(hospital.name)
    for serial in ((1 << 53) - 1, int(cas.clock()) + 86_400):
        grant = hospital.grant(importer, resources=("secret:drawn",), serial=serial)
        with pytest.raises(ConflictError, match="later than the CAS's time"):
            client.put_grant(SignedGrant(grant).signed_by(key, policy))
    hospital.client.put_grant(hospital.signed(importer))
