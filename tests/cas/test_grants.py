"""Imports across namespaces: what an exporting policy's people sign, and what an importer's enclaves then have."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.cas.policy.grant_files import GrantFile, GrantRequest
from strongroom.cas.policy.grants import Grant, SignedGrant
from strongroom.cas.policy.version import parse_policy
from strongroom.crypto import SigningKey
from strongroom.errors import ConflictError, FormatError, GrantError, UnauthorizedError
from strongroom.sealed import Root
from tests.cas.exports import KEY, PURPOSE, RECORDS, Hospital, hospital_in, importer_in
from tests.cas.owners import KEYS, signed_by, table
from tests.cas.world import world_in

ONE, TWO = (Root(n, bytes([n]) * 32) for n in (1, 2))
GRANT = Grant(
    "hospital/records",
    "acme/train",
    ("vault:patients", "secret:db"),
    ("ab" * 48,),
    "sha256:" + "cd" * 32,
    PURPOSE,
    ("acme/serve",),
    1_900_000_000,
    7,
)


@pytest.fixture
def hospital(cas):
    with hospital_in(cas) as made:
        yield made


@pytest.fixture
def importer(cas, hospital):
    with importer_in(cas, hospital) as made:
        yield made


def test_an_enclave_imports_what_its_owners_granted(hospital, importer):
    hospital.client.anchor(hospital.name, "patients").advance(None, ONE)
    hospital.client.put_grant(hospital.signed(importer))
    with importer.session() as session:
        got = session.attest()
        assert got.vault_keys == {"patients": KEY}
        assert got.environment == {"DB": "sesame"}
        anchor = session.anchor("patients")
        assert anchor.read() == ONE
        with pytest.raises(UnauthorizedError):
            anchor.advance(ONE, TWO)
        hospital.client.anchor(hospital.name, "patients").advance(ONE, TWO)
        assert anchor.read() == TWO
    granted = next(e for e in hospital.client.log() if e["event"] == "granted")
    told = json.loads(granted["detail"])
    assert (told["to"], told["resources"], told["purpose"]) == (importer.name, ["secret:db", "vault:patients"], PURPOSE)
    assert "grant-received" in importer.events()


def test_without_a_grant_it_is_refused_and_both_logs_say_so(hospital, importer):
    with importer.session() as session, pytest.raises(GrantError, match="which nobody has granted"):
        session.attest()
    assert importer.refusals() == ["grant"]
    entry = json.loads(next(e for e in hospital.client.log() if e["event"] == "refused")["detail"])
    assert (entry["code"], entry["importer"]) == ("grant", importer.name)


def test_a_grant_that_is_withdrawn_ends_at_once(hospital, importer):
    signed = hospital.signed(importer)
    hospital.client.put_grant(signed)
    hospital.client.anchor(hospital.name, "patients").advance(None, ONE)
    with importer.session() as session:
        session.attest()
        assert session.anchor("patients").read() == ONE
        hospital.client.withdraw_grant(hospital.name, signed.grant.id)
        with pytest.raises(GrantError, match="was withdrawn"):
            session.anchor("patients").read()
    hospital.client.withdraw_grant(hospital.name, signed.grant.id)  # once more changes nothing
    assert [state for _, state in hospital.client.grants(hospital.name)] == ["withdrawn"]
    assert hospital.events()[-2:] == ["grant-withdrawn", "refused"]
    assert "grant-lost" in importer.events()


def test_a_generated_secret_can_be_imported(cas, hospital):
    more = f'[[secrets]]\nname = "drawn"\nenvironment = "DRAWN"\nfrom = "{hospital.name}"\n'
    with importer_in(cas, hospital, more=more) as importer, importer.session() as session:
        hospital.client.put_grant(hospital.signed(importer))
        drawn = session.attest().environment["DRAWN"]
        assert len(bytes.fromhex(drawn)) == 16
        assert session.renew().environment["DRAWN"] == drawn


def test_a_newer_grant_takes_the_place_of_an_older(hospital, importer):
    first = hospital.signed(importer, resources=("secret:db",))
    hospital.client.put_grant(first)
    hospital.client.put_grant(first)
    with importer.session() as session:
        with pytest.raises(GrantError, match="does not name vault:patients"):
            session.attest()
        hospital.client.put_grant(hospital.signed(importer, serial=first.grant.serial + 1))
        session.attest()
    assert hospital.events().count("granted") == 2
    [(kept, state)] = hospital.client.grants(hospital.name)
    assert (kept.grant.serial, state) == (first.grant.serial + 1, "in force")


def test_only_those_who_may_see_and_store_grants(cas, hospital, importer):
    signed = hospital.signed(importer)
    with cas.owner() as stranger:
        for act in (
            lambda: stranger.put_grant(signed),
            lambda: stranger.grants(hospital.name),
            lambda: stranger.withdraw_grant(hospital.name, signed.grant.id),
        ):
            with pytest.raises(UnauthorizedError):
                act()


def test_an_administrator_grants_what_the_policy_lets_them(cas, hospital, importer):
    clerk = SigningKey.generate()
    more = (
        f'{RECORDS}[[administrators]]\nname = "clerk"\nkey = "{clerk.public.fingerprint}"\n'
        'may = ["grants"]\nresources = ["secret:db"]\n'
    )
    with hospital_in(cas, more=more) as other, importer_in(cas, other) as world:
        policy = other.client.policy(other.name)
        with pytest.raises(GrantError, match="no owner's of"):
            SignedGrant(other.grant(world)).signed_by(clerk, policy)
        some = SignedGrant(other.grant(world, resources=("secret:db",))).signed_by(clerk, policy)
        with cas.owner(clerk) as client:
            client.put_grant(some)
            assert [state for _, state in client.grants(other.name)] == ["in force"]


@pytest.mark.parametrize(
    ("resource", "why"),
    [
        ("secret:token", "names none"),
        ("sealed:patients", "names none"),
        ("vault:mirror", "is a mirror"),
    ],
)
def test_only_what_the_policy_has_as_its_own_is_granted(cas, importer, resource, why):
    more = RECORDS + '[program]\ncommand = ["python", "a.py"]\n[[vaults]]\nname = "mirror"\naccess = "mirror"\n'
    with hospital_in(cas, more=more) as other, importer_in(cas, other) as world:
        signed = other.signed(world, resources=(resource,))
        with pytest.raises(GrantError, match=why):
            other.client.put_grant(signed)


def test_what_is_imported_is_not_passed_on(cas, hospital, importer):
    middle = Hospital(importer.name, importer.owner, importer.client)
    more = f'[[secrets]]\nname = "db"\nfrom = "{middle.name}"\n'
    with importer_in(cas, middle, more=more) as last, pytest.raises(GrantError, match="not passed on"):
        middle.client.put_grant(middle.signed(last))


def test_owners_grant_by_their_threshold(cas):
    more = table(2, ("alice", "bob", "carol")) + RECORDS
    with hospital_in(cas) as hospital:
        current = hospital.client.policy(hospital.name)
        with world_in(cas, more="") as helper:
            helper.owner = hospital.key
            text = helper.text(name=hospital.name, version=3, previous=current.digest, more=more)
        hospital.client.apply(text, signed_by(parse_policy(text), "alice", "bob"))
        with importer_in(cas, hospital) as importer:
            one = hospital.signed(importer, KEYS["alice"])
            with pytest.raises(GrantError, match="not yet: 1 of bob, carol"):
                hospital.client.put_grant(one)
            hospital.client.put_grant(one.signed_by(KEYS["carol"], hospital.client.policy(hospital.name)))
            with importer.session() as session:
                assert session.attest().environment == {"DB": "sesame"}


def test_a_grant_s_bytes_are_one_form_only():
    raw = GRANT.to_bytes()
    assert Grant.from_bytes(raw) == GRANT
    with pytest.raises(FormatError):
        Grant.from_bytes(raw + b" ")
    for name in parse_canonical(raw):
        with pytest.raises(FormatError):
            Grant.from_bytes(canonical({k: v for k, v in parse_canonical(raw).items() if k != name}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"resources": ()},
        {"resources": ("db",)},
        {"resources": ("secret:db", "secret:db")},
        {"measurements": ("abc",)},
        {"measurements": ()},
        {"reference": "ab"},
        {"purpose": ""},
        {"purpose": "a\nb"},
        {"recipients": ("*",)},
        {"expires": 0},
        {"serial": -1},
        {"serial": 1 << 60},
        {"source": "hospital"},
        {"importer": "ACME/train"},
    ],
)
def test_a_grant_of_another_form_is_refused(wrong):
    with pytest.raises(FormatError):
        Grant.from_bytes(replace(GRANT, **wrong).to_bytes())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(parse_canonical(GRANT.to_bytes()))), _JSON)
def test_whatever_a_field_holds_a_grant_is_read_or_refused(name, value):
    wire = parse_canonical(GRANT.to_bytes()) | {name: value}
    try:
        read = Grant.from_bytes(canonical(wire))
    except FormatError:
        return
    assert read.to_bytes() == canonical(wire)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | _JSON.map(json.dumps))
def test_no_file_makes_more_than_a_format_error(text):
    for parse in (GrantRequest.parse, GrantFile.parse):
        with pytest.raises(FormatError):
            parse(text)


def test_a_request_says_all_that_is_asked_for(hospital, importer):
    request = GrantRequest.of(importer.policy, hospital.name)
    assert GrantRequest.parse(request.to_text()) == request
    assert request.resources == ("secret:db", "vault:patients")
    assert request.recipients == ("acme/serve",)
    with pytest.raises(GrantError, match="imports nothing"):
        GrantRequest.of(importer.policy, "acme/other")


def test_the_file_that_people_pass_on_has_the_table_that_is_granted(hospital, importer):
    request = GrantRequest.of(importer.policy, hospital.name)
    file = GrantFile(hospital.signed(importer), request.reference)
    assert GrantFile.parse(file.to_text()) == file
    other = replace(file, reference={**request.reference, "tcb_statuses": ["OutOfDate"]})
    with pytest.raises(FormatError, match="is not the table"):
        GrantFile.parse(other.to_text())


def test_an_expired_grant_is_not_stored(hospital, importer):
    signed = hospital.signed(importer, expires=int(importer.cas.clock()) - 1)
    with pytest.raises(ConflictError, match="is past"):
        hospital.client.put_grant(signed)
