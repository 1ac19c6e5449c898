"""Every parser of evidence, of what comes with it, and of policies, as one check each.

`harness` fuzzes them, `test_fuzz` replays what it found.

A check takes any bytes. It returns, or raises an error of ours: whatever else it raises is a fault in the parser. Where
there is a writer, what was read is written and read again alike. Some checks wrap the bytes in what has to be right
before anybody looks at them: lengths, a signature.
"""

from __future__ import annotations

import base64
import datetime as dt
import functools
import json
import struct
import tomllib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cbor2

from strongroom.attest.binding import canonical, parse_canonical
from strongroom.attest.cwt import EXP, IAT, sign_cwt, verify_cwt
from strongroom.attest.dsse import Envelope
from strongroom.attest.endorsements import Bundle, Endorsement, wants
from strongroom.attest.endorsements.foreign import endorsements_in
from strongroom.attest.enrolment import Challenge, EnrolmentRequest, begin_enrolment
from strongroom.attest.evidence import Evidence
from strongroom.attest.explain import explain
from strongroom.attest.files import TpmFiles, read_evidence
from strongroom.attest.files.endorsements import certificates_in, read_endorsements
from strongroom.attest.files.tpm import read_key
from strongroom.attest.parse.azure import from_coco, parse_azure, parse_hcl_report
from strongroom.attest.parse.cbor import parse_cbor
from strongroom.attest.parse.certificate_table import ASK, VCEK, parse_certificate_table
from strongroom.attest.parse.collateral import parse_collateral, parse_qe_identity, parse_tcb_info
from strongroom.attest.parse.dcap import parse_quote as parse_dcap_quote
from strongroom.attest.parse.dcap import unpadded
from strongroom.attest.parse.endorsements import Endorsements, parse_endorsements
from strongroom.attest.parse.event_log import parse_event_log, replay, secure_boot
from strongroom.attest.parse.nitro import parse_nitro
from strongroom.attest.parse.nvidia import from_nvtrust, parse_nvidia
from strongroom.attest.parse.pck import SGX_EXTENSION, parse_platform
from strongroom.attest.parse.snp import parse_snp
from strongroom.attest.parse.tpm import DIGESTS, parse_quote, parse_signature, parse_tpm
from strongroom.attest.parse.tpm_key import parse_public
from strongroom.attest.result import RESULT_CWT, RESULT_TOKEN, ResultStatement, sign_result, sign_result_cwt
from strongroom.attest.result import verify_result as verify_attestation_result
from strongroom.attest.token import sign_token, thumbprint, verify_token
from strongroom.attest.verify import verify
from strongroom.cas.policy.difference import differences
from strongroom.cas.policy.grant_files import GrantFile, GrantRequest
from strongroom.cas.policy.grants import Grant, SignedGrant
from strongroom.cas.policy.lines import Lines
from strongroom.cas.policy.schema import policy_schema
from strongroom.cas.policy.table import to_toml
from strongroom.cas.policy.templates import as_template, parse_template
from strongroom.cas.policy.version import parse_policy, policy_problems
from strongroom.crypto import Certificate, CertificateAuthority, SigningKey
from strongroom.crypto.chains import RevocationList, VendorCertificate, VendorKey, pem_certificates, verify_chain
from strongroom.errors import FormatError, PolicyError, StrongroomError, VerificationError
from tests.cas.json_schema import is_valid

VECTORS = Path(__file__).parents[1] / "vectors"
CORPUS = Path(__file__).parent / "corpus"
NOW = 1_750_000_000
TYP = "strongroom-test+jwt"


@dataclass(frozen=True)
class Parser:
    """`runs` is how many inputs `make test-all` tries; fewer where one takes long."""

    check: Callable[[bytes], object]
    seeds: Callable[[], Iterable[bytes]]
    runs: int = 20_000


PARSERS: dict[str, Parser] = {}


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with: known good ones, and those that once broke the parser."""
    return [*PARSERS[name].seeds(), *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]


Check = Callable[[bytes], object]


def parser(name: str, seeds: Callable[[], Iterable[bytes]], *, runs: int = 20_000) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        PARSERS[name] = Parser(check, seeds, runs)
        return check

    return add


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def vectors(pattern: str) -> list[bytes]:
    found = [path.read_bytes() for path in sorted(VECTORS.glob(pattern))]
    assert found, pattern
    return found


def text_of(raw: bytes) -> str:
    """Any text, one with lone surrogates too, as JSON may bring one about."""
    return raw.decode("utf-8", "surrogateescape")


def document_of(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise FormatError("not JSON") from None


# Intel.


def quotes() -> list[bytes]:
    return [*vectors("dcap-*/*.quote.bin"), *vectors("tdx/*.quote.bin")]


def collaterals() -> list[bytes]:
    return [*vectors("dcap-*/*.collateral.json"), *vectors("tdx/*.collateral.json")]


@functools.cache
def pck() -> VendorCertificate:
    return parse_dcap_quote(vector("dcap-sgx/sgx_v3_phala.quote.bin")).certificates[0]


@parser("dcap-quote", quotes)
def check_dcap_quote(raw: bytes) -> None:
    quote = parse_dcap_quote(raw)
    assert raw.startswith(quote.raw)
    assert unpadded(raw) == quote.raw
    assert parse_dcap_quote(quote.raw) == quote


@parser("dcap-chain", lambda: [quote[quote.index(b"-----BEGIN") :] for quote in quotes()])
def check_dcap_chain(raw: bytes) -> None:
    """The certificates in a quote of version 3, its lengths set right."""
    sound = vector("dcap-sgx/sgx_v3_phala.quote.bin")
    start = sound.index(b"-----BEGIN")
    parts = sound[436 : start - 4] + struct.pack("<I", len(raw)) + raw
    quote = parse_dcap_quote(sound[:432] + struct.pack("<I", len(parts)) + parts)
    assert b"".join(raw.split()).rstrip(b"\0") == b"".join(
        b"".join(each.pem().encode().split()) for each in quote.certificates
    )


@parser("pck-extension", lambda: [pck().extension(SGX_EXTENSION) or b""])
def check_pck_extension(raw: bytes) -> None:
    class Bare:
        def extension(self, _: str) -> bytes:
            return raw

    parse_platform(Bare())  # type: ignore[arg-type]


@parser("collateral", collaterals, runs=10_000)
def check_collateral(raw: bytes) -> None:
    read = parse_collateral(raw)
    with suppress(StrongroomError):
        parse_tcb_info(read.tcb_info)
    with suppress(StrongroomError):
        parse_qe_identity(read.qe_identity)
    quote = unpadded(vector("dcap-tdx/tdx_v4_gcp_cos113.quote.bin"))
    verify(Evidence("tdx", quote, raw), now=NOW)


@parser("tcb-info", lambda: [parse_collateral(each).tcb_info.encode() for each in collaterals()])
def check_tcb_info(raw: bytes) -> None:
    parse_tcb_info(text_of(raw))


@parser("qe-identity", lambda: [parse_collateral(each).qe_identity.encode() for each in collaterals()])
def check_qe_identity(raw: bytes) -> None:
    parse_qe_identity(text_of(raw))


# Certificates.


def leaves() -> list[bytes]:
    return [*vectors("sev-snp/*.leaf.der"), pck().der]


def revocation_lists() -> list[bytes]:
    return [
        *(base64.b64decode(b"".join(each.split(b"\n")[1:-2])) for each in vectors("amd-kds/*.crl.pem")),
        *(parse_collateral(each).pck_crl for each in collaterals()[:1]),
    ]


@parser("certificate", leaves)
def check_certificate(raw: bytes) -> None:
    found = VendorCertificate(raw)
    assert pem_certificates(found.pem().encode()) == (found,)
    assert VendorKey(found.key.spki) == found.key
    for oid in (SGX_EXTENSION, "2.5.29.15", "2.5.29.19", "2.5.29.35"):
        with suppress(StrongroomError):
            found.extension(oid)
    assert found.usages is None or all(found.usages)
    assert repr(found)
    assert found.is_ca in (True, False)
    assert found.may_sign in (True, False)
    verify_chain([found], found, now=NOW)


@parser("certificates-pem", lambda: [vector("nvidia-gpu/hopper_chain.pem"), vector("tpm2/enrolled/root.pem")])
def check_certificates_pem(raw: bytes) -> None:
    found = pem_certificates(raw)
    assert pem_certificates("".join(each.pem() for each in found).encode()) == found
    verify_chain(found, found[-1], now=NOW)


@parser("revocation-list", revocation_lists)
def check_revocation_list(raw: bytes) -> None:
    found = RevocationList(raw)
    with suppress(StrongroomError):
        found.check(pck())
    found.verify(pck(), now=NOW)


@parser("vendor-key", lambda: [VendorCertificate(each).key.spki for each in leaves()])
def check_vendor_key(raw: bytes) -> None:
    key = VendorKey(raw)
    assert VendorKey(key.spki) == key
    for check in (
        lambda: key.verify_rsa(raw, raw, algorithm="sha256"),
        lambda: key.verify_rsa(raw, raw, algorithm="sha384", pss=True),
        lambda: key.verify_ecdsa(len(raw), 1, raw, algorithm="sha512"),
    ):
        with suppress(VerificationError):
            check()


@parser("endorsements", lambda: [Endorsements(pem_certificates(chain())).to_bytes(), endorsements()])
def check_endorsements(raw: bytes) -> None:
    found = parse_endorsements(raw)
    same_again(found)


def same_again(found: Endorsements) -> None:
    written = found.to_bytes()
    again = parse_endorsements(written)
    assert again.certificates == found.certificates
    assert again.to_bytes() == written


def chain() -> bytes:
    return vector("nvidia-gpu/hopper_chain.pem")


def endorsements() -> bytes:
    lists = tuple(map(RevocationList, revocation_lists()))
    return Endorsements((VendorCertificate(leaves()[0]),), lists).to_bytes()


def table() -> bytes:
    first, second = leaves()[:2]
    start = 3 * 24
    entries = VCEK.bytes + struct.pack("<II", start, len(first))
    entries += ASK.bytes + struct.pack("<II", start + len(first), len(second))
    return entries + bytes(24) + first + second


@parser("certificate-table", lambda: [table()])
def check_certificate_table(raw: bytes) -> None:
    found = parse_certificate_table(raw)
    same_again(found)


@parser("endorsement-files", lambda: [*collaterals()[:1], endorsements(), chain(), table(), thim(), *leaves()[:1]])
def check_endorsement_files(raw: bytes) -> None:
    with suppress(StrongroomError):
        found = certificates_in(raw)
        same_again(found)
    for tee in ("snp", "tdx"):
        with suppress(StrongroomError):
            read_endorsements(tee, [raw])


def thim() -> bytes:
    pem = VendorCertificate(leaves()[0]).pem()
    return json.dumps({"vcekCert": pem, "certificateChain": pem, "tcbm": "00"}).encode()


def bundle() -> bytes:
    return Bundle(
        Endorsement.read(f"nvidia/crl/{index}", each, fetched=NOW) for index, each in enumerate(revocation_lists())
    ).to_bytes()


@parser(
    "bundle", lambda: [bundle(), *(Bundle(endorsements_in(each, now=NOW)).to_bytes() for each in collaterals()[:1])]
)
def check_bundle(raw: bytes) -> None:
    found = Bundle.from_bytes(raw)
    assert Bundle.from_bytes(found.to_bytes()).to_bytes() == found.to_bytes()


@parser("foreign-endorsements", lambda: [*collaterals()[:1], platform_collateral(), chain(), *leaves()[:1], table()])
def check_foreign_endorsements(raw: bytes) -> None:
    found = Bundle(endorsements_in(raw, now=NOW))
    assert Bundle.from_bytes(found.to_bytes()).to_bytes() == found.to_bytes()


def platform_collateral() -> bytes:
    read = parse_collateral(collaterals()[0])
    info = {"tcbInfo": json.loads(read.tcb_info), "signature": read.tcb_info_signature.hex()}
    identity = {"enclaveIdentity": json.loads(read.qe_identity), "signature": read.qe_identity_signature.hex()}
    document = {
        "tcbinfos": [{"fmspc": info["tcbInfo"]["fmspc"], "sgx_tcbinfo": info}],
        "qeidentity": identity,
        "pckcacrl": {"processorCrl": read.pck_crl.hex(), "platformCrl": ""},
        "rootcacrl": read.root_ca_crl.hex(),
        "certificates": {
            "SGX-TCB-Info-Issuer-Chain": read.tcb_info_issuer_chain,
            "SGX-Enclave-Identity-Issuer-Chain": read.qe_identity_issuer_chain,
            "SGX-PCK-Certificate-Issuer-Chain": {"PROCESSOR": read.pck_crl_issuer_chain},
        },
    }
    return json.dumps({"collaterals": document}).encode()


# AMD.


@parser("snp-report", lambda: vectors("sev-snp/*.report.bin"))
def check_snp_report(raw: bytes) -> None:
    report = parse_snp(raw)
    assert report.migration_agent in (True, False)
    assert dict(report.platform) is not None
    assert report.product != ""
    explain(Evidence("snp", raw, b""))


# TPM.


def shown() -> Any:
    return parse_tpm(vector("tpm2/enrolled/evidence.json"))


@parser("tpm-quote", lambda: [shown().message, *vectors("tpm2/swtpm_own/*.msg")])
def check_tpm_quote(raw: bytes) -> None:
    quote = parse_quote(raw)
    assert all(0 <= index < 32 for indices in quote.selection.values() for index in indices)


@parser("tpm-signature", lambda: [shown().signature, *vectors("tpm2/swtpm_own/*.sig")])
def check_tpm_signature(raw: bytes) -> None:
    parse_signature(raw)


def public_areas() -> list[bytes]:
    request = EnrolmentRequest.from_bytes(vector("tpm2/enrolled/request.json"))
    return [request.ek_public, request.ak_public]


@parser("tpm-public-area", public_areas)
def check_tpm_public_area(raw: bytes) -> None:
    public = parse_public(raw)
    assert public.raw == raw
    assert public.qualified_name(public.name) != public.name


@parser("tpm-key-files", lambda: [*public_areas(), *vectors("tpm2/swtpm_own/*_ak.pem")])
def check_tpm_key_files(raw: bytes) -> None:
    read_key(raw)


REGISTERS = (
    b"sha256:\n  0 : 0x" + b"0f" * 32 + b"\n  10: 0x" + b"00" * 32 + b"\n",
    b'{"sha256":{"10":"' + b"00" * 32 + b'"}}',
)


@parser("tpm-register-files", lambda: [*REGISTERS, bytes(96)])
def check_tpm_register_files(raw: bytes) -> None:
    files = TpmFiles(vector("tpm2/swtpm_own/ecc256_quote.sig"), vector("tpm2/swtpm_own/ecc256_ak.pem"), raw)
    read_evidence(vector("tpm2/swtpm_own/ecc256_quote.msg"), tpm_files=files)


@parser("tpm-evidence", lambda: [vector("tpm2/enrolled/evidence.json")])
def check_tpm_evidence(raw: bytes) -> None:
    found = parse_tpm(raw)
    assert found.to_bytes() == raw
    assert parse_tpm(found.to_bytes()) == found


@parser("event-log", lambda: [shown().event_log])
def check_event_log(raw: bytes) -> None:
    events = parse_event_log(raw)
    for bank, _ in DIGESTS.values():
        for event in events:
            assert event.words(bank) is None or event.name
        with suppress(StrongroomError):
            replay(events, bank)
        with suppress(StrongroomError):
            secure_boot(events, bank)


@parser("enrolment-request", lambda: [vector("tpm2/enrolled/request.json")], runs=10_000)
def check_enrolment_request(raw: bytes) -> None:
    request = EnrolmentRequest.from_bytes(raw)
    assert EnrolmentRequest.from_bytes(request.to_bytes()) == request
    begin_enrolment(request, pem_certificates(vector("tpm2/enrolled/root.pem")), now=NOW)


@parser("enrolment-challenge", lambda: [Challenge(b"credential", b"seed").to_bytes()])
def check_enrolment_challenge(raw: bytes) -> None:
    assert Challenge.from_bytes(raw).to_bytes() == raw


# Azure.


@functools.cache
def coco() -> list[bytes]:
    return vectors("azure-vtpm/*.json")


def azure(raw: bytes) -> Evidence:
    return from_coco(json.loads(raw))


@functools.cache
def hcl_reports() -> list[bytes]:
    return [parse_azure(each.tee, each.quote).hcl_report for each in map(azure, coco())]


@parser("hcl-report", hcl_reports)
def check_hcl_report(raw: bytes) -> None:
    report = parse_hcl_report(raw)
    assert report.runtime in raw
    assert isinstance(report.user_data, str)


@parser("hcl-runtime-claims", lambda: [parse_hcl_report(each).runtime for each in hcl_reports()])
def check_hcl_runtime_claims(raw: bytes) -> None:
    """The claims in an HCL report, its lengths set right."""
    start, sound = 32 + 1184, hcl_reports()[0]
    version = struct.unpack_from("<I", sound, start + 4)[0]
    head = 20 if version == 1 else 24
    whole = bytearray(sound[: start + head] + raw)
    struct.pack_into("<I", whole, 8, len(whole))
    struct.pack_into("<I", whole, start, head + len(raw))
    struct.pack_into("<I", whole, start + 16, len(raw))
    assert parse_hcl_report(bytes(whole)).runtime == raw


@parser("azure-evidence", lambda: [azure(each).quote for each in coco()])
def check_azure_evidence(raw: bytes) -> None:
    for tee in ("azure-snp", "azure-tdx"):
        with suppress(StrongroomError):
            assert parse_azure(tee, raw).to_bytes() == raw


@parser("azure-coco", coco)
def check_azure_coco(raw: bytes) -> None:
    document = document_of(raw)
    if isinstance(document, dict):
        found = from_coco(document)
        assert parse_azure(found.tee, found.quote).to_bytes() == found.quote


# Amazon.


def nitro_documents() -> list[bytes]:
    return [base64.b64decode(each) for each in vectors("aws-nitro/*.b64")]


@parser("cbor", nitro_documents)
def check_cbor(raw: bytes) -> None:
    with suppress(StrongroomError):
        assert cbor2.dumps(parse_cbor(raw, "item")) == raw
    parse_cbor(raw, "item", indefinite_maps=True)


@parser("nitro", nitro_documents)
def check_nitro(raw: bytes) -> None:
    document = parse_nitro(raw)
    assert document.signature in raw
    assert 0 in document.pcrs


@parser("nitro-payload", lambda: [cbor2.loads(each.removeprefix(b"\xd2"))[2] for each in nitro_documents()])
def check_nitro_payload(raw: bytes) -> None:
    """The payload of a document, in a COSE_Sign1."""
    document = cbor2.dumps([bytes.fromhex("a1013822"), {}, raw, bytes(96)])
    parse_nitro(document)
    explain(Evidence("nitro", document, b""))


# NVIDIA.


def exchange() -> bytes:
    return bytes.fromhex(vector("nvidia-gpu/hopper_report.hex").decode())


@parser("nvidia", lambda: [exchange()])
def check_nvidia(raw: bytes) -> None:
    found = parse_nvidia(raw)
    assert found.signed + found.signature == raw


def nvtrust() -> bytes:
    encoded = {"evidence": base64.b64encode(exchange()).decode(), "certificate": base64.b64encode(chain()).decode()}
    return json.dumps([encoded | {"arch": "HOPPER", "nonce": parse_nvidia(exchange()).nonce.hex()}]).encode()


@parser("nvtrust", lambda: [nvtrust()])
def check_nvtrust(raw: bytes) -> None:
    for evidence in from_nvtrust(document_of(raw)):
        parse_nvidia(evidence.quote)
        assert parse_endorsements(evidence.endorsements).certificates


# Our own.


def wire_forms() -> list[bytes]:
    device = Evidence("nvidia", exchange(), b"")
    tpm = Evidence("tpm", vector("tpm2/enrolled/evidence.json"), b"", (device,))
    snp = Evidence("snp", vector("sev-snp/milan_v2.report.bin"), endorsements())
    return [json.dumps(each.to_wire()).encode() for each in (tpm, snp)]


@parser("wire-form", wire_forms)
def check_wire_form(raw: bytes) -> None:
    document = document_of(raw)
    evidence = Evidence.from_wire(document)
    assert evidence.to_wire() == document
    assert Evidence.from_wire(evidence.to_wire()) == evidence


@parser("canonical-json", lambda: [b'{"a":[1,-2,"\xc3\xa9",null,true],"b":{"\xf0\x90\x80\x80":"\\n"}}'])
def check_canonical_json(raw: bytes) -> None:
    assert canonical(parse_canonical(raw)) == raw


@parser(
    "evidence-file",
    lambda: [
        *quotes(),
        *vectors("sev-snp/*.report.bin"),
        *vectors("aws-nitro/nitro.b64"),
        *vectors("nvidia-gpu/*.hex"),
        *coco(),
        vector("tpm2/tpm_evidence_coco.json"),
        nvtrust(),
        composite(),
        sev_json(),
        *wire_forms(),
    ],
    runs=10_000,
)
def check_evidence_file(raw: bytes) -> None:
    """All that is done with a file from outside, up to its verification."""
    evidence = read_evidence(raw).evidence
    assert Evidence.from_wire(evidence.to_wire()) == evidence
    for look in (explain, wants, lambda evidence: verify(evidence, now=NOW)):
        with suppress(StrongroomError):
            look(evidence)


def composite() -> bytes:
    primary = {"quote": base64.b64encode(vector("dcap-tdx/tdx_v4_gcp_cos113.quote.bin")).decode(), "cc_eventlog": None}
    devices = json.dumps({"nvidia": {"device_evidence_list": json.loads(nvtrust())}})
    return json.dumps({"primary_evidence": primary, "additional_evidence": devices}).encode()


def sev_json() -> bytes:
    report = vector("sev-snp/milan_v2.report.bin")
    tcb = {"fmc": None, "bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
    fields = {"version": 2, "sig_algo": 1, "policy": 0x30000, "current_tcb": tcb, "reported_tcb": tcb}
    fields |= {"committed_tcb": tcb, "launch_tcb": tcb, "current": {"major": 1, "minor": 55, "build": 4}}
    fields |= {"report_data": list(report[0x50:0x90]), "chip_id": list(report[0x1A0:0x1E0])}
    fields |= {"signature": {"r": list(report[0x2A0:0x2E8]), "s": list(report[0x2E8:0x330])}}
    chain = [{"cert_type": "VCEK", "data": list(leaves()[0])}]
    return json.dumps({"attestation_report": fields, "cert_chain": chain}).encode()


# Tokens: first as anybody can send them, then as if the signer had been fooled, with any payload under its signature.


@functools.cache
def key() -> SigningKey:
    return SigningKey.generate()


STATEMENT = ResultStatement(
    issuer="sha256:" + 64 * "0",
    issued_at=NOW,
    expires=NOW + 600,
    policy="a/b",
    policy_digest="sha256:" + 64 * "1",
    fresh=bytes(32),
    claims=64 * "2",
    tee="snp",
    measurement=96 * "3",
    vendor_root="sha256:" + 64 * "4",
)


@parser("jwt", lambda: [sign_token(key(), TYP, {"iat": NOW, "exp": NOW + 600, "x": "y"}).encode()])
def check_jwt(raw: bytes) -> None:
    verify_token(text_of(raw), key().public, TYP, now=NOW)


@parser("cwt", lambda: [sign_cwt(key(), RESULT_CWT, {IAT: NOW, EXP: NOW + 600, 10: b"nonce"})])
def check_cwt(raw: bytes) -> None:
    verify_cwt(raw, key().public, RESULT_CWT, now=NOW)


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@parser("result-jwt-payload", lambda: [base64.urlsafe_b64decode(sign_result(STATEMENT, key()).split(".")[1] + "==")])
def check_result_jwt_payload(raw: bytes) -> None:
    header = {"alg": "ES256", "kid": thumbprint(key().public), "typ": RESULT_TOKEN}
    signed = f"{_base64url(canonical(header))}.{_base64url(raw)}"
    verify_attestation_result(f"{signed}.{_base64url(key().sign(signed.encode()))}", key().public, now=NOW)


@parser("result-cwt-claims", lambda: [cbor2.loads(sign_result_cwt(STATEMENT, key())).value[2]])
def check_result_cwt_claims(raw: bytes) -> None:
    # RFC 9052, section 4.4; the header parameters of attest/cwt.py.
    protected = cbor2.dumps({1: -7, 4: thumbprint(key().public).encode(), 16: RESULT_CWT}, canonical=True)
    signature = key().sign(cbor2.dumps(["Signature1", protected, b"", raw]))
    token = cbor2.dumps(cbor2.CBORTag(18, [protected, {}, raw, signature]))
    verify_attestation_result(token, key().public, now=NOW)


@functools.cache
def envelope() -> bytes:
    now = dt.datetime.fromtimestamp(NOW, dt.UTC)
    authority = CertificateAuthority.create("authority", now=now)
    leaf: Certificate = authority.issue(key().public, "signer", now=now, lifetime=dt.timedelta(days=1))
    return Envelope.sign(key(), [leaf, authority.certificate], "text/plain", b"payload").to_bytes()


@parser("dsse", lambda: [envelope()])
def check_dsse(raw: bytes) -> None:
    found = Envelope.parse(raw)
    again = Envelope.parse(found.to_bytes())
    assert (again.payload_type, again.payload, again.signature) == (found.payload_type, found.payload, found.signature)
    found.verify(key().public, "text/plain")


# Policies.


@functools.cache
def every_key() -> str:
    return (Path(__file__).parent / "policy.toml").read_text()


@functools.cache
def schema() -> dict[str, Any]:
    return policy_schema()


@parser("policy", lambda: [every_key().encode()], runs=5_000)
def check_policy(raw: bytes) -> None:
    text = text_of(raw)
    problems, lines = policy_problems(text), Lines(text)
    assert all(1 <= lines.of(each.where) <= text.count("\n") + 1 for each in problems)
    assert all(each.error.message.isprintable() and len(each.error.message) < 1000 for each in problems)
    try:
        policy = parse_policy(text)
    except PolicyError:
        assert problems
        raise
    assert not problems
    assert is_valid(tomllib.loads(text), schema())
    differences(policy, parse_policy(every_key()))
    differences(parse_policy(every_key()), policy)


def _toml(value: Any) -> str:
    match value:
        case None:
            raise FormatError("TOML has no null")
        case str():
            return to_toml(value)
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{to_toml(key)} = {_toml(each)}" for key, each in value.items()) + "}"
        case float():
            return repr(value)
    return json.dumps(value)


@parser("policy-document", lambda: [json.dumps(tomllib.loads(every_key()), default=str).encode()], runs=5_000)
def check_policy_document(raw: bytes) -> None:
    """A policy as JSON, of which a mutation keeps the form; the date-time is in quotes there."""
    document = document_of(raw)
    if not isinstance(document, dict) or not isinstance(document.get("policy"), dict):
        raise FormatError("no policy")
    head = document.pop("policy")
    moment = head.pop("expires", None)
    with suppress(TypeError, ValueError):
        moment = dt.datetime.fromisoformat(moment)
    written = [f"{to_toml(key)} = {_toml(each)}\n" for key, each in document.items()]
    text = "".join(written) + "[policy]\n" + "".join(f"{to_toml(key)} = {_toml(each)}\n" for key, each in head.items())
    if moment is not None:
        text += f"expires = {moment.isoformat() if isinstance(moment, dt.datetime) else _toml(moment)}\n"
    check_policy(text.encode("utf-8", "surrogatepass"))


@parser("policy-template", lambda: [b"a=${secret.db}\n$${x} $$${y} ${secret.a}${secret.b}$"])
def check_policy_template(raw: bytes) -> None:
    text = text_of(raw)
    assert parse_template(as_template(text)).render({}) == text
    template = parse_template(text)
    values = dict.fromkeys(template.names, "${secret.db}$")
    assert template.render(values).count("${secret.db}$") >= len(template.places)


# Grants.


def grant() -> Grant:
    return Grant(
        "hospital/records",
        "acme/train",
        ("vault:patients", "secret:db"),
        ("ab" * 48,),
        "sha256:" + "cd" * 32,
        "train",
        ("acme/serve", "sha256:" + "ef" * 32),
        1_900_000_000,
        7,
    )


@parser("grant", lambda: [grant().to_bytes()])
def check_grant(raw: bytes) -> None:
    assert Grant.from_bytes(raw).to_bytes() == raw


@parser("grant-request", lambda: [grant_request().to_text().encode()])
def check_grant_request(raw: bytes) -> None:
    found = GrantRequest.parse(raw.decode("utf-8", "replace"))
    assert GrantRequest.parse(found.to_text()) == found
    made = found.grant(expires=1_900_000_000, serial=1)
    assert Grant.from_bytes(made.to_bytes()) == made


@parser("grant-file", lambda: [GrantFile(SignedGrant(signed_grant()), grant_request().reference).to_text().encode()])
def check_grant_file(raw: bytes) -> None:
    found = GrantFile.parse(raw.decode("utf-8", "replace"))
    assert GrantFile.parse(found.to_text()) == found


def grant_request() -> GrantRequest:
    reference = {"tees": ["tdx"], "measurements": ["ab" * 48]}
    return GrantRequest("hospital/records", "acme/train", ("secret:db",), reference, "train", (), ("python", "a.py"))


def signed_grant() -> Grant:
    return grant_request().grant(expires=1_900_000_000, serial=7)
