"""Attestation results that others verify: what the tokens say, who refuses which, and that other software agrees."""

from __future__ import annotations

import base64
import datetime as dt
import json
from dataclasses import replace

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.appraise import appraise
from strongroom.attest.claims import Claims
from strongroom.attest.cwt import MAX_CWT, sign_cwt
from strongroom.attest.reference import ReferenceValues
from strongroom.attest.result import (
    PROFILE,
    RESULT_CWT,
    RESULT_TOKEN,
    DeviceStatement,
    ResultStatement,
    key_set,
    sign_result,
    sign_result_cwt,
    verify_result,
)
from strongroom.attest.token import sign_token, thumbprint, verify_token
from strongroom.attest.verify.anchors import INTEL_ROOT, VENDORS
from strongroom.crypto import CertificateAuthority, PublicKey, SigningKey
from strongroom.errors import ExpiredError, FormatError, SimulatedEnclaveError, UsageError, VerificationError

NOW = 1_750_000_000
GOOD = "ab" * 48
KEY = SigningKey.generate()
GPU = DeviceStatement("nvidia", "cd" * 48, VENDORS.nvidia.fingerprint)
STATEMENT = ResultStatement(
    issuer="sha256:" + "11" * 32,
    issued_at=NOW,
    expires=NOW + 600,
    policy="acme/digits",
    policy_digest="sha256:" + "22" * 32,
    fresh=bytes(range(32)),
    claims="33" * 32,
    tee="tdx",
    measurement=GOOD,
    vendor_root=INTEL_ROOT,
    tcb_status="UpToDate",
    devices=(GPU, replace(GPU, measurement="ef" * 48)),
)
SIMULATED = replace(STATEMENT, tee="simulated", vendor_root="sha256:" + "44" * 32, devices=())
SIGNERS = (sign_result, sign_result_cwt)


def payload(token: str) -> dict:
    return verify_token(token, KEY.public, RESULT_TOKEN, now=NOW, kid=True)


def cwt_claims(token: bytes) -> dict:
    """By position: tag 18 of an array of protected header, unprotected header, payload and signature."""
    tag = cbor2.loads(token)
    assert tag.tag == 18
    return cbor2.loads(tag.value[2])


@pytest.mark.parametrize("sign", SIGNERS)
@pytest.mark.parametrize("statement", [STATEMENT, replace(STATEMENT, tee="tpm", tcb_status="", devices=())])
def test_a_result_says_what_was_signed(sign, statement):
    token = sign(statement, KEY)
    for now in (NOW - 60, NOW, NOW + 599):
        assert verify_result(token, KEY.public, now=now) == statement


def test_a_statement_is_of_an_appraisal():
    claims = Claims("tdx", GOOD, {}, b"d" * 64, False, INTEL_ROOT, "UpToDate")
    result = appraise(claims, ReferenceValues(("tdx",), (GOOD,)), expected_report_data=b"d" * 64, now=NOW)
    said = {"issuer": STATEMENT.issuer, "policy": "a/b", "policy_digest": "d", "fresh": b"f" * 32, "claims": "00" * 32}
    statement = ResultStatement.of(result, **said, lifetime=600)
    assert (statement.issued_at, statement.expires, statement.measurement) == (NOW, NOW + 600, GOOD)
    assert verify_result(sign_result(statement, KEY), KEY.public, now=NOW) == statement


@pytest.mark.parametrize("sign", SIGNERS)
def test_a_result_has_its_time_and_its_key(sign):
    token = sign(STATEMENT, KEY)
    for now, message in ((NOW + 600, f"expired at {NOW + 600}"), (NOW - 61, f"issued at {NOW}")):
        with pytest.raises(ExpiredError, match=message):
            verify_result(token, KEY.public, now=now)
    with pytest.raises(VerificationError, match="kid"):
        verify_result(token, SigningKey.generate().public, now=NOW)


@pytest.mark.parametrize("sign", SIGNERS)
def test_a_simulated_enclave_needs_its_root_by_name(sign):
    token = sign(SIMULATED, KEY)
    for allowed in ((), (INTEL_ROOT,), ("",)):
        with pytest.raises(SimulatedEnclaveError, match="simulated is simulated, under sha256:4444"):
            verify_result(token, KEY.public, now=NOW, allow_simulated=allowed)
    assert verify_result(token, KEY.public, now=NOW, allow_simulated=[SIMULATED.vendor_root]) == SIMULATED


@pytest.mark.parametrize("sign", SIGNERS)
def test_so_does_a_simulated_device_of_a_real_enclave(sign):
    root = "sha256:" + "55" * 32
    statement = replace(STATEMENT, devices=(GPU, replace(GPU, vendor_root=root)))
    token = sign(statement, KEY)
    with pytest.raises(SimulatedEnclaveError, match="nvidia is simulated, under sha256:5555"):
        verify_result(token, KEY.public, now=NOW)
    assert verify_result(token, KEY.public, now=NOW, allow_simulated={root}) == statement
    assert payload(sign_result(statement, KEY))["submods"]["device-1"]["ear_status"] == "contraindicated"


@pytest.mark.parametrize("sign", SIGNERS)
def test_what_the_policy_put_up_with_is_said(sign):
    statement = replace(
        STATEMENT,
        weaknesses=("sept-ve", "migratable"),
        advisories=("INTEL-SA-00615",),
        devices=(replace(GPU, advisories=("NV-1",)),),
    )
    assert verify_result(sign(statement, KEY), KEY.public, now=NOW) == statement
    enclave = payload(sign_result(statement, KEY))["submods"]["enclave"]
    assert enclave["ear_attester_claims"]["weaknesses"] == ["sept-ve", "migratable"]
    for wrong in (("",), (1,), ["a"], "a", ("a",) * 1025):
        with pytest.raises(UsageError, match="weaknesses: wanted"):
            sign(replace(STATEMENT, weaknesses=wrong), KEY)


@pytest.mark.parametrize(
    ("flaws", "status", "vector"),
    [
        ({}, "affirming", {"executables": 3, "hardware": 2, "runtime-opaque": 2}),
        ({"advisories": ("X",)}, "warning", {"executables": 3, "hardware": 32, "runtime-opaque": 2}),
        ({"tcb_status": "OutOfDate"}, "warning", {"executables": 3, "hardware": 32, "runtime-opaque": 2}),
        *(
            ({"weaknesses": (word,)}, "warning", {"executables": 3, "hardware": 32})
            for word in ("migratable", "sept-ve", "attribute-bits", "vmpl", "policy-bits")
        ),
        *(
            ({"weaknesses": (word,)}, "warning", {"hardware": 32, "runtime-opaque": 2})
            for word in ("pcr-sha1", "pcr-resettable")
        ),
    ],
)
def test_a_flawed_enclave_is_not_affirmed(flaws, status, vector):
    said = payload(sign_result(replace(STATEMENT, **flaws), KEY))["submods"]["enclave"]
    assert (said["ear_status"], said["ear_trustworthiness_vector"]) == (status, vector)


def test_a_reader_refuses_a_list_of_flaws_that_is_empty_or_none():
    for value in ([], "sept-ve", None, {}, [1]):
        said = payload(sign_result(STATEMENT, KEY))
        said["submods"]["enclave"]["ear_attester_claims"]["weaknesses"] = value
        with pytest.raises(VerificationError):
            verify_result(sign_token(KEY, RESULT_TOKEN, said, kid=True), KEY.public, now=NOW)


def test_the_claims_are_those_of_the_drafts():
    said = payload(sign_result(STATEMENT, KEY))
    assert said["eat_profile"] == PROFILE
    assert said["ear_verifier_id"]["developer"] == "Strongroom"
    assert set(said["submods"]) == {"enclave", "device-0", "device-1"}
    enclave = said["submods"]["enclave"]
    assert enclave["ear_status"] == "affirming"
    assert enclave["ear_trustworthiness_vector"] == {"executables": 3, "hardware": 2, "runtime-opaque": 2}
    assert enclave["ear_appraisal_policy_ids"] == ["acme/digits", STATEMENT.policy_digest]
    assert enclave["ear_attester_claims"]["measurement"] == GOOD
    numbered = cwt_claims(sign_result_cwt(STATEMENT, KEY))
    assert (numbered[6], numbered[4], numbered[10], numbered[265]) == (NOW, NOW + 600, bytes(range(32)), PROFILE)
    assert numbered[266]["enclave"][1000] == 2
    assert numbered[266]["enclave"][1001] == {2: 3, 4: 2, 5: 2}
    assert numbered[1004][0] == "Strongroom"


def test_every_reader_of_such_results_hears_what_is_weak():
    for statement, status, hardware in (
        (replace(STATEMENT, tcb_status="SWHardeningNeeded"), "warning", 32),
        (replace(STATEMENT, tee="snp", tcb_status=""), "affirming", 2),
        (SIMULATED, "contraindicated", 97),
    ):
        enclave = payload(sign_result(statement, KEY))["submods"]["enclave"]
        assert (enclave["ear_status"], enclave["ear_trustworthiness_vector"]["hardware"]) == (status, hardware)
    assert "runtime-opaque" not in payload(sign_result(replace(STATEMENT, tee="tpm"), KEY))["submods"]["enclave"]


def edited(change) -> tuple[str, bytes]:
    """Both tokens with claims that the same key signed, changed by name or by number."""
    named, numbered = payload(sign_result(STATEMENT, KEY)), cwt_claims(sign_result_cwt(STATEMENT, KEY))
    change(named, lambda name, number: name)
    change(numbered, lambda name, number: number)
    return sign_token(KEY, RESULT_TOKEN, named, kid=True), sign_cwt(KEY, RESULT_CWT, numbered)


def enclave(claims, key):
    return claims[key("submods", 266)]["enclave"]


CHANGES = {
    "more": lambda c, k: c.update({k("sub", 2): "x"}),
    "another profile": lambda c, k: c.update({k("eat_profile", 265): "tag:github.com,2023:veraison/ear"}),
    "no issuer": lambda c, k: c.pop(k("iss", 1)),
    "no submods": lambda c, k: c.update({k("submods", 266): {}}),
    "another submod": lambda c, k: c[k("submods", 266)].update(other={}),
    "a device left out": lambda c, k: c[k("submods", 266)].pop("device-0"),
    "a better status": lambda c, k: enclave(c, k).update({k("ear_status", 1000): k("none", 0)}),
    "a better vector": lambda c, k: enclave(c, k)[k("ear_trustworthiness_vector", 1001)].update(
        {k("file-system", 3): 2}
    ),
    "three policies": lambda c, k: enclave(c, k)[k("ear_appraisal_policy_ids", 1003)].append("x"),
    "no policies": lambda c, k: enclave(c, k).update({k("ear_appraisal_policy_ids", 1003): None}),
    "a number for a measurement": lambda c, k: enclave(c, k)[k("ear_attester_claims", 1005)].update(measurement=1),
    "no measurement": lambda c, k: enclave(c, k)[k("ear_attester_claims", 1005)].update(measurement=""),
    "capital digits": lambda c, k: enclave(c, k)[k("ear_attester_claims", 1005)].update(measurement="AB" * 48),
    "a short nonce": lambda c, k: c.update({k("eat_nonce", 10): k("AAAA", b"AAA")}),
    "a nonce of another type": lambda c, k: c.update({k("eat_nonce", 10): 7}),
    "a root of another form": lambda c, k: enclave(c, k)[k("ear_attester_claims", 1005)].update(vendor_root="x"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_claims_are_refused_though_the_key_signed_them(change):
    for token in edited(change):
        with pytest.raises(VerificationError, match="attestation result: "):
            verify_result(token, KEY.public, now=NOW)


@pytest.mark.parametrize(
    "claims",
    [
        {4: NOW + 600},
        {4: True, 6: False},
        {4: NOW + 600, 6: float(NOW)},
        [],
        b"",
        7,
        "text",
        {4: NOW + 600, 6: NOW, (1, 2): 3},
        cbor2.CBORTag(30, [1, 2]),
    ],
)
def test_a_cwt_of_other_claims_is_refused(claims):
    token = _cose({1: -7, 4: thumbprint(KEY.public).encode(), 16: RESULT_CWT}, cbor2.dumps(claims, canonical=True))
    with pytest.raises(VerificationError):
        verify_result(token, KEY.public, now=NOW)


def _cose(header, claims: bytes) -> bytes:
    """A COSE_Sign1 of whatever header and payload, signed by the right key."""
    protected = header if isinstance(header, bytes) else cbor2.dumps(header, canonical=True)
    signed = cbor2.dumps(["Signature1", protected, b"", claims])
    return cbor2.dumps(cbor2.CBORTag(18, [protected, {}, claims, KEY.sign(signed)]))


KID = thumbprint(KEY.public).encode()
CLAIMS = cbor2.loads(cbor2.loads(sign_result_cwt(STATEMENT, KEY)).value[2])


@pytest.mark.parametrize(
    "header",
    [
        {1: -7, 4: KID, 16: "application/cwt"},
        {1: -7, 4: KID},
        {1: -7, 16: RESULT_CWT},
        {1: -35, 4: KID, 16: RESULT_CWT},
        {1: 5, 4: KID, 16: RESULT_CWT},
        {1: -7, 2: [4], 4: KID, 16: RESULT_CWT},
        b"",
        b"\xa0",
    ],
)
def test_no_other_header_of_a_cwt_is_read(header):
    with pytest.raises(VerificationError, match="token header"):
        verify_result(_cose(header, cbor2.dumps(CLAIMS, canonical=True)), KEY.public, now=NOW)


def test_one_statement_is_one_cwt():
    token = sign_result_cwt(STATEMENT, KEY)
    untagged, claims = token[1:], cbor2.dumps(CLAIMS, canonical=True)
    header = {1: -7, 4: KID, 16: RESULT_CWT}
    reordered = cbor2.dumps(dict(reversed(CLAIMS.items())))
    assert cbor2.loads(reordered) == CLAIMS
    for other in (
        untagged,
        token + b"\0",
        token[:-1],
        b"",
        b"\xd2",
        token[: len(token) - 66],
        b"\xd8\x12" + untagged,
        _cose(header, claims + b"\0"),
        _cose(header, reordered),
        _cose(header, b"\x9f" * 1000),
        _cose(header, b"\x81" * 30_000),
        bytes(MAX_CWT + 1),
        bytearray(token),
        None,
    ):
        with pytest.raises(VerificationError):
            verify_result(other, KEY.public, now=NOW)


def test_no_changed_byte_of_a_cwt_passes():
    token = sign_result_cwt(replace(STATEMENT, devices=()), KEY)
    for i in range(len(token)):
        changed = token[:i] + bytes([token[i] ^ (1 << i % 8)]) + token[i + 1 :]
        with pytest.raises(VerificationError):
            verify_result(changed, KEY.public, now=NOW)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 1000), st.integers(0, 40))
def test_no_bytes_bring_the_reader_to_fall(junk, at, cut):
    token = sign_result_cwt(STATEMENT, KEY)
    for raw in (junk, token[:at] + junk + token[at + cut :]):
        if raw != token:
            with pytest.raises(VerificationError):
                verify_result(raw, KEY.public, now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"measurement": ""},
        {"measurement": "xyz"},
        {"fresh": b"short"},
        {"policy": ""},
        {"claims": None},
        {"vendor_root": "sha256:00"},
        {"devices": (replace(GPU, measurement=""),)},
        {"expires": NOW},
        {"issued_at": True},
    ],
)
def test_only_what_can_be_verified_is_signed(change):
    for sign in SIGNERS:
        with pytest.raises(UsageError):
            sign(replace(STATEMENT, **change), KEY)
    with pytest.raises((UsageError, FormatError)):
        sign_result(replace(STATEMENT, policy="x" * 70_000), KEY)
    with pytest.raises(UsageError):
        sign_result_cwt(replace(STATEMENT, policy="x" * 70_000), KEY)


# By other software, from the published keys alone


@pytest.fixture(scope="module")
def published() -> dict:
    moment = dt.datetime.fromtimestamp(NOW, dt.UTC)
    authority = CertificateAuthority.create("CAS", now=moment)
    leaf = authority.issue(KEY.public, "CAS", now=moment, lifetime=dt.timedelta(days=1))
    return json.loads(json.dumps(key_set([(leaf, authority.certificate)])))


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def test_by_hand(published):
    [jwk] = published["keys"]
    x, y = (int.from_bytes(unpadded(jwk[name]), "big") for name in "xy")
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()

    def verify(signature: bytes, signed: bytes) -> None:
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))

    head, said, signature = sign_result(STATEMENT, KEY).split(".")
    verify(unpadded(signature), f"{head}.{said}".encode())
    assert json.loads(unpadded(head)) == {"alg": "ES256", "kid": jwk["kid"], "typ": "eat+jwt"}
    protected, _, claims, signature = cbor2.loads(sign_result_cwt(STATEMENT, KEY)).value
    verify(signature, cbor2.dumps(["Signature1", protected, b"", claims]))
    assert cbor2.loads(protected) == {1: -7, 4: jwk["kid"].encode(), 16: "application/eat+cwt"}
    chain = [base64.b64decode(der) for der in jwk["x5c"]]
    assert len(chain) == 2
    assert PublicKey(KEY.public.spki).fingerprint == KEY.public.fingerprint


def test_by_pyjwt_where_it_is_installed(published):
    jwt = pytest.importorskip("jwt")
    token = sign_result(STATEMENT, KEY)
    keys = jwt.PyJWKSet.from_dict(published)
    key = keys[jwt.get_unverified_header(token)["kid"]]
    said = jwt.decode(token, key, algorithms=["ES256"], options={"verify_exp": False, "verify_iat": False})
    assert said["submods"]["enclave"]["ear_status"] == "affirming"
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(token[:-4] + "AAAA", key, algorithms=["ES256"], options={"verify_exp": False})
