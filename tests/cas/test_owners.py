"""Who must sign a policy's versions: the document, the signatures, the rule from one version to the next, the chain."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.cas.policy.owners import (
    Owners,
    OwnerSignature,
    SignatureFile,
    check_signatures,
    read_signatures,
    signed_bytes,
)
from strongroom.cas.policy.succession import SignedPolicy, verify_chain
from strongroom.cas.policy.version import parse_policy
from strongroom.cas.wire import b64
from strongroom.crypto import PublicKey, SigningKey
from strongroom.errors import (
    ConflictError,
    FormatError,
    PolicyError,
    RollbackError,
    StrongroomError,
    UnauthorizedError,
    VerificationError,
)
from tests.cas.owners import ADMIN, KEYS, applied, signed_by, table, version

TWO_OF_THREE = table(2, ["alice", "bob", "carol"])
FIRST = version(owners=TWO_OF_THREE)


# The document


def test_owners_are_read():
    assert FIRST.owners is not None
    assert FIRST.owners.threshold == 2
    assert FIRST.owners.keys == {name: KEYS[name].public for name in ("alice", "bob", "carol")}
    assert version().owners is None


@pytest.mark.parametrize(
    ("owners", "says"),
    [
        (table(1, ["alice"], eve=KEYS["alice"]), "owners.keys.eve: is the key of alice too, and a key counts once"),
        (table(3, ["alice", "bob"]), "owners.threshold: got 3, and there are 2 owners"),
        (table(0, ["alice"]), "owners.threshold: got 0"),
        ("[owners]\nthreshold = 1\n", "owners.keys: missing"),
        ("[owners]\nthreshold = 1\n[owners.keys]\n", "owners.keys: got 0, wanted 1 to 32"),
        (table(1, ["alice"]) + 'bob = "MFkw"\n', "owners.keys.bob: public key: not a DER"),
        (table(1, ["alice"]) + 'bob = "!"\n', "owners.keys.bob: not base64"),
        (table(1, ["alice"]) + "bob = 1\n", "owners.keys.bob: got int, wanted a string"),
        (table(1, ["alice"]) + '"b b" = ""\n', "owners.keys: got the name 'b b', wanted a word"),
        (table(1, ["alice"]).replace("threshold", "quorum"), "owners.threshold: missing"),
        (table(1, ["alice"]).replace("[owners.keys]", "veto = true\n[owners.keys]"), "owners: unknown key 'veto'"),
        (table(1, [], **{f"k{n}": SigningKey.generate() for n in range(33)}), "got 33, wanted 1 to 32 owners"),
    ],
)
def test_owners_that_are_refused_are_named(owners, says):
    with pytest.raises(PolicyError, match=says):
        version(owners=owners)


# One version after the other


@pytest.mark.parametrize("who", [("alice", "bob"), ("carol", "alice"), ("alice", "bob", "carol")])
def test_enough_owners_suffice(who):
    applied(FIRST, *who).check_after(None)
    second = version(FIRST, TWO_OF_THREE)
    applied(second, *who).check_after(FIRST)


def test_both_thresholds_are_wanted():
    second = version(FIRST, table(2, ["carol", "dave"]))
    applied(second, "alice", "carol", "dave").check_after(FIRST)
    for who, says in (
        (("alice", "bob"), "0 of the 2 that the owners of acme/train in version 2"),
        (("carol", "dave"), "1 of the 2 that the owners of acme/train in version 1"),
        (("alice", "bob", "carol"), "1 of the 2 that the owners of acme/train in version 2.*not yet: dave"),
    ):
        with pytest.raises(UnauthorizedError, match=says):
            applied(second, *who).check_after(FIRST)


def test_owners_come_and_go_only_by_their_own_signatures():
    plain = version()
    first = version(plain, TWO_OF_THREE)
    with pytest.raises(UnauthorizedError, match=r"0 of the 2.*signed: nobody; not yet: alice, bob, carol"):
        applied(first).check_after(plain)
    applied(first, "alice", "bob").check_after(plain)
    gone = version(first)
    for who in ((), ("carol",)):
        with pytest.raises(UnauthorizedError, match="that the owners of acme/train in version 2 must give"):
            applied(gone, *who).check_after(first)
    applied(gone, "bob", "carol").check_after(first)


def test_owners_may_name_another_administrator_and_he_alone_may_not():
    other = SigningKey.generate()
    second = version(FIRST, TWO_OF_THREE, admin=other)
    applied(second, "alice", "bob", admin=other).check_after(FIRST)
    with pytest.raises(UnauthorizedError, match="1 of the 2"):
        applied(second, "alice", admin=other).check_after(FIRST)
    with pytest.raises(UnauthorizedError, match=r"policy.owner: got .*, the key that signed it is"):
        applied(second, "alice", "bob").check_after(FIRST)
    plain = version()
    with pytest.raises(UnauthorizedError, match=r"policy\.owner: got .*, wanted"):
        applied(version(plain, TWO_OF_THREE, admin=other), "alice", "bob", admin=other).check_after(plain)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"version": 3}, PolicyError, "policy.version: got 3, wanted 2"),
        ({"previous": "sha256:" + "00" * 32}, PolicyError, "policy.previous: got sha256:0000"),
        ({"previous": None}, PolicyError, "policy.previous: got none"),
        ({"version": 1}, ConflictError, "policy.version: got 1 with sha256:.*, and another document is version 1"),
    ],
)
def test_gaps_and_forks_are_refused_though_all_have_signed(changes, error, says):
    second = version(FIRST, TWO_OF_THREE, **changes)
    with pytest.raises(error, match=says):
        applied(second, "alice", "bob", "carol").check_after(FIRST)


def test_going_back_is_refused_though_all_have_signed():
    second = version(FIRST, TWO_OF_THREE)
    third = version(second, TWO_OF_THREE)
    for older in (FIRST, second):
        with pytest.raises(RollbackError, match=f"policy.version: got {older.version}, and 3 is the newest"):
            applied(older, "alice", "bob", "carol").check_after(third)


# Signatures


def swapped(policy, signatures):
    return dataclasses.replace(applied(policy), signatures=signatures)


def test_a_signature_is_of_one_document_one_version_and_one_policy():
    second = version(FIRST, TWO_OF_THREE)
    others = [
        FIRST,
        version(FIRST, TWO_OF_THREE, role="service"),
        version(FIRST, TWO_OF_THREE, name="acme/other"),
        version(second, TWO_OF_THREE),
    ]
    for other in others:
        mixed = signed_by(second, "alice") + signed_by(other, "bob")
        with pytest.raises(VerificationError, match="signatures: bob's does not match acme/train, version 2"):
            swapped(second, mixed).check_after(FIRST)


def test_a_key_counts_once():
    twice = signed_by(FIRST, "alice", "alice")
    assert twice[0].signature != twice[1].signature
    with pytest.raises(FormatError, match="signatures: two of sha256:"):
        swapped(FIRST, twice).check_after(None)
    with pytest.raises(FormatError, match="signatures: two of sha256:"):
        read_signatures([one.to_wire() for one in twice])


def test_one_stranger_s_signature_refuses_all():
    with pytest.raises(UnauthorizedError, match="is the key of no owner of acme/train in version 1"):
        applied(FIRST, "alice", "bob", "dave").check_after(None)
    with pytest.raises(UnauthorizedError, match="is the key of no owner"):
        applied(version(), "alice").check_after(None)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 63), st.integers(0, 7))
def test_no_bit_of_a_signature_may_change(position, bit):
    good = applied(FIRST, "alice", "bob")
    broken = bytearray(good.signatures[1].signature)
    broken[position] ^= 1 << bit
    changed = (good.signatures[0], OwnerSignature(good.signatures[1].key, bytes(broken)))
    with pytest.raises(VerificationError, match="signatures: bob's does not match"):
        dataclasses.replace(good, signatures=changed).check_after(None)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["key", "signature", "x"]), inner),
        max_leaves=8,
    )
)
def test_whatever_arrives_as_signatures_is_read_or_refused(wire):
    with contextlib.suppress(FormatError):
        assert [one.to_wire() for one in read_signatures(wire)] == wire


def test_more_signatures_than_two_versions_have_owners_are_not_looked_at():
    with pytest.raises(FormatError, match="at most 64"):
        read_signatures([None] * 65)


# The file that owners sign one after the other


def test_a_signature_file_is_read_back():
    file = SignatureFile(FIRST.name, 1, FIRST.digest, signed_by(FIRST, "alice", "bob"))
    assert SignatureFile.parse(file.to_text()) == file
    file.check_of(FIRST.name, 1, FIRST.digest)


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"policy": "acme/other"}, "signatures.policy: got acme/other"),
        ({"version": 2}, "signatures.version: got 2"),
        ({"digest": "sha256:" + "00" * 32}, "signatures.digest: got sha256:00"),
    ],
)
def test_a_signature_file_of_something_else_is_refused(lie, says):
    file = dataclasses.replace(SignatureFile(FIRST.name, 1, FIRST.digest), **lie)
    with pytest.raises(VerificationError, match=says):
        file.check_of(FIRST.name, 1, FIRST.digest)


GOOD_FILE = json.loads(SignatureFile(FIRST.name, 1, FIRST.digest, signed_by(FIRST, "alice")).to_text())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 5000,
        json.dumps(GOOD_FILE | {"more": 1}),
        json.dumps(GOOD_FILE | {"version": True}),
        json.dumps(GOOD_FILE | {"version": 0}),
        json.dumps(GOOD_FILE | {"signatures": GOOD_FILE["signatures"] * 2}),
        json.dumps(GOOD_FILE | {"signatures": {}}),
        json.dumps(GOOD_FILE).replace('"version": 1', '"version": 1, "version": 1'),
        json.dumps(GOOD_FILE) + " " * (1 << 16),
    ],
)
def test_a_malformed_signature_file_is_refused(text):
    with pytest.raises(FormatError, match="signatures"):
        SignatureFile.parse(text)


# The chain


@pytest.fixture(scope="module")
def chain():
    """Without owners; two of three; carol for bob; one more by these."""
    first = version()
    second = version(first, TWO_OF_THREE)
    third = version(second, table(2, ["alice", "carol", "dave"]))
    fourth = version(third, table(1, ["dave"]))
    return [
        applied(first),
        applied(second, "alice", "bob"),
        applied(third, "alice", "carol"),
        applied(fourth, "carol", "dave"),
    ]


def test_a_chain_is_checked_from_its_first_version_or_from_a_pinned_one(chain):
    assert verify_chain("acme/train", chain) == tuple(chain)
    for pinned in (2, 3):
        assert verify_chain("acme/train", chain, pinned=chain[pinned].policy.digest) == tuple(chain[pinned:])


def test_a_chain_survives_its_wire_form(chain):
    assert [SignedPolicy.from_wire(each.to_wire()) for each in chain] == chain


def test_a_chain_that_ends_before_the_pinned_version_or_is_another_is_refused(chain):
    with pytest.raises(RollbackError, match=r"is not among them, and they end with version 2"):
        verify_chain("acme/train", chain[:2], pinned=chain[2].policy.digest)
    fork = version(chain[1].policy, table(1, ["bob"]))
    with pytest.raises(RollbackError, match="is not among them"):
        verify_chain("acme/train", [*chain[:2], applied(fork, "alice", "bob")], pinned=chain[2].policy.digest)
    with pytest.raises(PolicyError, match="there are none"):
        verify_chain("acme/train", [])


@pytest.mark.parametrize("change", ["drop first", "drop middle", "repeat", "unsigned", "reorder", "rename", "removed"])
def test_a_chain_with_a_broken_link_is_refused(chain, change):
    name = "acme/train"
    match change:
        case "drop first":
            chain = chain[1:]
        case "drop middle":
            chain = [chain[0], *chain[2:]]
        case "repeat":
            chain = [*chain, chain[-1]]
        case "unsigned":
            chain = [*chain[:3], dataclasses.replace(chain[3], signatures=chain[3].signatures[:1])]
        case "reorder":
            chain = [chain[1], chain[0], *chain[2:]]
        case "rename":
            name = "acme/other"
        case "removed":  # bob, who is no owner since version 3
            chain = [*chain[:3], applied(version(chain[2].policy, table(1, ["dave"])), "bob", "dave")]
    with pytest.raises(StrongroomError, match=r"policy\.|signatures|versions of"):
        verify_chain(name, chain)


def test_what_an_owner_signs_is_what_the_specification_says():
    digest = FIRST.digest
    message = b'strongroom/policy/owner/v1\0["acme/train",1,"' + digest.encode() + b'"]'
    assert signed_bytes("acme/train", 1, digest) == message
    [one] = signed_by(FIRST, "alice")
    KEYS["alice"].public.verify(one.signature, message)
    assert one.to_wire() == {"key": KEYS["alice"].public.fingerprint, "signature": b64(one.signature)}


def test_the_vector_of_the_specification():
    page = (Path(__file__).parents[2] / "docs" / "spec" / "cas.md").read_text()
    [block] = re.findall(r"```json\n(.*?)```", page.partition("### Owners")[2].partition("**History**")[0], re.DOTALL)
    vector = json.loads(block)
    key, signature = PublicKey(base64.b64decode(vector["public"])), OwnerSignature.from_wire(vector["signature"])
    said = {name: vector[name] for name in ("version", "digest")} | {"name": vector["policy"]}
    owners = Owners({"alice": key}, 1)
    check_signatures([signature], owners=owners, before=None, **said)
    with pytest.raises(VerificationError):
        check_signatures([signature], owners=owners, before=None, **said | {"version": 3})


def test_a_version_by_itself_shows_its_own_owners_signatures():
    applied(FIRST, "alice", "bob").check_own()
    with pytest.raises(UnauthorizedError, match="1 of the 2"):
        applied(FIRST, "alice").check_own()
    second = version(FIRST, table(1, ["dave"]))
    applied(second, "alice", "bob", "dave").check_own()  # alice and bob are owners of version 1 only
    assert parse_policy(second.text).owner == ADMIN.public.fingerprint
