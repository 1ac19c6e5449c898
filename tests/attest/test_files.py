"""Evidence and endorsements in the forms that other tools write."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom.attest.evidence import Evidence
from strongroom.attest.explain import explain
from strongroom.attest.files import MAX_FILE, TpmFiles, read_evidence
from strongroom.attest.files.endorsements import certificates_in, leaf_first, read_endorsements
from strongroom.attest.files.sev import report_of_fields
from strongroom.attest.files.tpm import read_key
from strongroom.attest.parse.endorsements import parse_endorsements
from strongroom.attest.parse.snp import tcb_components
from strongroom.attest.verify import verify
from strongroom.crypto.chains import VendorCertificate, pem_certificates
from strongroom.errors import FormatError, StrongroomError, UsageError

VECTORS = Path(__file__).parents[1] / "vectors"
SWTPM = VECTORS / "tpm2" / "swtpm_own"
KINDS = {
    "dcap-sgx/sgx_v3_phala.quote.bin": ("sgx", "DCAP quote, version 3"),
    "dcap-tdx/tdx_v4_gcp_cos113.quote.bin": ("tdx", "DCAP quote, version 4"),
    "tdx/v5_no_matching_tcb.quote.bin": ("tdx", "DCAP quote, version 5"),
    "sev-snp/milan_v2.report.bin": ("snp", "SNP report, version 2"),
    "sev-snp/milan_v3_vlek.report.bin": ("snp", "SNP report, version 3"),
    "aws-nitro/nitro.b64": ("nitro", "Nitro document in base64"),
    "nvidia-gpu/hopper_report.hex": ("nvidia", "NVIDIA request and report in hexadecimal digits"),
    "azure-vtpm/az-snp-vtpm_evidence-v1.json": ("azure-snp", "Confidential Containers' JSON, of an Azure vTPM"),
    "azure-vtpm/az-tdx-vtpm_evidence-v1.json": ("azure-tdx", "Confidential Containers' JSON, of an Azure vTPM"),
    "tpm2/tpm_evidence_coco.json": ("tpm", "Confidential Containers' JSON, of a TPM"),
}
BINARY = [name for name in KINDS if name.endswith(".bin")]


def raw(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


@pytest.mark.parametrize("name", KINDS)
def test_a_form_is_recognised_by_its_content(name):
    found = read_evidence(raw(name))
    assert (found.evidence.tee, found.form) == KINDS[name]


@pytest.mark.parametrize("name", BINARY)
def test_text_stands_for_the_bytes_however_it_is_spelled(name):
    wanted = read_evidence(raw(name)).evidence
    plain = base64.b64encode(raw(name))
    for text in (
        raw(name).hex().encode(),
        b"0x" + raw(name).hex().upper().encode() + b"\n",
        plain,
        b"\n".join(plain[i : i + 76] for i in range(0, len(plain), 76)) + b"\r\n",
        base64.urlsafe_b64encode(raw(name)).rstrip(b"="),
    ):
        assert read_evidence(text).evidence == wanted


def test_zeros_after_a_quote_are_no_part_of_it():
    found = read_evidence(raw("dcap-sgx/sgx_v3_phala.quote.bin") + bytes(100))
    assert found.evidence == read_evidence(raw("dcap-sgx/sgx_v3_phala.quote.bin")).evidence


def test_our_own_form_comes_back_as_it_was(vendor, registers):
    evidence = vendor.quote(registers, bytes(64))
    found = read_evidence(json.dumps(evidence.to_wire()).encode())
    assert (found.evidence, found.form) == (evidence, "this project's JSON")


def test_quotes_in_the_json_of_trustee_and_dstack():
    quote = raw("dcap-tdx/tdx_v4_gcp_cos113.quote.bin")
    wanted = read_evidence(quote).evidence
    for text in (base64.b64encode(quote).decode(), quote.hex()):
        assert read_evidence(json.dumps({"quote": text, "cc_eventlog": None}).encode()).evidence == wanted


# SNP.


def sev_json(report: bytes, *, old: bool) -> dict[str, object]:
    """The report's fields as the `sev` crate writes them, before and since its version 5."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(report[at : at + size], "little")

    def tcb(at: int) -> dict[str, object]:
        parts: dict[str, object] = dict(tcb_components(report[at : at + 8], "Milan"))
        return parts | ({"_reserved": [0] * 4} if old else {"fmc": None})

    def version(name: str, at: int) -> dict[str, object]:
        build, minor, major = report[at : at + 3]
        if old:
            return {f"{name}_build": build, f"{name}_minor": minor, f"{name}_major": major}
        return {name: {"major": major, "minor": minor, "build": build}}

    octets = {
        "family_id": (0x10, 16),
        "image_id": (0x20, 16),
        "report_data": (0x50, 64),
        "measurement": (0x90, 48),
        "host_data": (0xC0, 32),
        "id_key_digest": (0xE0, 48),
        "author_key_digest": (0x110, 48),
        "report_id": (0x140, 32),
        "report_id_ma": (0x160, 32),
        "chip_id": (0x1A0, 64),
    }
    document: dict[str, object] = {name: list(report[at : at + size]) for name, (at, size) in octets.items()}
    document |= {"version": number(0, 4), "guest_svn": number(4, 4), "policy": number(8, 8), "vmpl": number(0x30, 4)}
    document |= {"sig_algo": number(0x34, 4), "plat_info": number(0x40, 8)}
    document |= {name: tcb(at) for name, at in (("current_tcb", 0x38), ("reported_tcb", 0x180))}
    document |= {name: tcb(at) for name, at in (("committed_tcb", 0x1E0), ("launch_tcb", 0x1F0))}
    document |= version("current", 0x1E8) | version("committed", 0x1EC)
    if old:
        document |= {"_author_key_en": number(0x48, 4), "_reserved_0": 0, "_reserved_1": list(report[0x188:0x1A0])}
    else:
        document |= {"key_info": number(0x48, 4), "cpuid_fam_id": report[0x188], "cpuid_mod_id": report[0x189]}
        document |= {"cpuid_step": report[0x18A]}
    return document | {"signature": {"r": list(report[0x2A0:0x2E8]), "s": list(report[0x2E8:0x330])}}


@pytest.mark.parametrize("old", [True, False])
def test_a_report_is_put_together_again_from_its_fields(old):
    report, leaf = raw("sev-snp/milan_v3_vlek.report.bin"), raw("sev-snp/milan_v3_vlek.leaf.der")
    chain = [{"cert_type": "VLEK", "data": list(leaf)}]
    document = {"attestation_report": sev_json(report, old=old), "cert_chain": chain}
    found = read_evidence(json.dumps(document).encode())
    assert found.evidence.quote == report
    assert found.evidence == read_evidence(report, [leaf]).evidence
    verify(found.evidence, now=1_748_736_000)


@pytest.mark.parametrize(
    "change",
    [
        {"version": -1},
        {"policy": 1 << 64},
        {"policy": True},
        {"measurement": [0] * 47},
        {"measurement": [256] * 48},
        {"measurement": "00" * 48},
        {"current_tcb": 7},
        {"current_tcb": {"bootloader": 1}},
        {"signature": None},
        {"signature": {"r": [0] * 72}},
        {"current": {"major": 1000, "minor": 0, "build": 0}},
    ],
)
def test_fields_of_another_type_or_size_are_refused(change):
    document = sev_json(raw("sev-snp/milan_v3_vlek.report.bin"), old=False) | change
    with pytest.raises(FormatError, match="snp evidence"):
        report_of_fields(document)


def test_an_extended_report_brings_its_certificates():
    report, leaf = raw("sev-snp/milan_v2.report.bin"), raw("sev-snp/milan_v2.leaf.der")
    vcek = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
    entry = vcek + (48).to_bytes(4, "little") + len(leaf).to_bytes(4, "little")
    found = read_evidence(report + entry + bytes(24) + leaf)
    assert found.form == "SNP report, version 2, with a certificate table"
    assert found.evidence == read_evidence(report, [leaf]).evidence


def test_every_form_of_certificates_gives_the_same_endorsements():
    der = raw("sev-snp/milan_v2.leaf.der")
    leaf = certificates_in(der).certificates[0]
    wanted = read_endorsements("snp", [der])
    for form in (
        leaf.pem().encode(),
        b"\n" + leaf.pem().replace("\n", "\r\n").encode(),
        json.dumps({"vcekCert": leaf.pem(), "certificateChain": "", "tcbm": "00"}).encode(),
        json.dumps([{"cert_type": "VCEK", "data": base64.b64encode(der).decode()}]).encode(),
        wanted,
    ):
        assert read_endorsements("snp", [form]) == wanted
    assert read_endorsements("snp", [der, der]) == wanted


def test_certificates_are_put_in_the_order_of_issue():
    chain = pem_certificates(raw("nvidia-gpu/hopper_chain.pem"))
    assert leaf_first(chain[::-1]) == leaf_first(chain) == chain
    files = [each.pem().encode() for each in (chain[2], chain[0], chain[1], *chain[3:])]
    assert parse_endorsements(read_endorsements("nvidia", files)).certificates == chain


# TPM.


def tpm_files(**changes: bytes) -> TpmFiles:
    parts = {"signature": "ecc256_quote.sig", "key": "ecc256_ak.pem", "registers": "meta.json"}
    return TpmFiles(**({name: (SWTPM / file).read_bytes() for name, file in parts.items()} | changes))


def test_registers_in_every_spelling():
    message = (SWTPM / "ecc256_quote.msg").read_bytes()
    wanted = read_evidence(message, tpm_files=tpm_files()).evidence
    meta = json.loads((SWTPM / "meta.json").read_text())
    values = {int(index): value for index, value in meta["pcrs"].items()}
    printed = "sha1:\n  10: 0x" + "00" * 20 + "\nsha256:\n" + "".join(f"  {i:2}: 0x{v}\n" for i, v in values.items())
    for registers in (
        json.dumps({"sha256": meta["pcrs"] | {"0": "00" * 32}}).encode(),
        printed.encode(),
        b"".join(bytes.fromhex(values[index]) for index in sorted(values)),
    ):
        assert read_evidence(message, tpm_files=tpm_files(registers=registers)).evidence == wanted
    wrapped = len(message).to_bytes(2) + message
    assert read_evidence(wrapped, tpm_files=tpm_files()).evidence == wanted
    der = read_key((SWTPM / "ecc256_ak.pem").read_bytes()).key.spki
    assert read_evidence(message, tpm_files=tpm_files(key=der)).evidence == wanted


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"signature": b""}, "without signature"),
        ({"key": b"", "registers": b""}, "without key, registers"),
        ({"registers": b"{}"}, "sha256:10,16,23 is quoted, and not among them"),
        ({"registers": b"{"}, "does not parse"),
        ({"registers": b'{"sha256": {"10": 1, "16": "x"}}'}, "hexadecimal digits|not among them"),
        ({"registers": b'{"pcrs": {"10": "zz"}, "bank": ["sha256"]}'}, "hexadecimal digits"),
        ({"registers": bytes(95)}, "95 bytes, wanted 96"),
        ({"key": b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n"}, "base64|public area|key"),
        ({"key": b"\0" * 5000}, "5000 bytes, wanted a public key"),
    ],
)
def test_what_lacks_or_does_not_fit_a_quote_is_named(changes, says):
    with pytest.raises(FormatError, match=says):
        read_evidence((SWTPM / "ecc256_quote.msg").read_bytes(), tpm_files=tpm_files(**changes))


# NVIDIA.


def test_one_of_several_gpus_must_be_chosen():
    report = bytes.fromhex(raw("nvidia-gpu/hopper_report.hex").decode())
    chain = raw("nvidia-gpu/hopper_chain.pem")
    gpu = {"arch": "HOPPER", "evidence": base64.b64encode(report).decode()}
    gpu |= {"certificate": base64.b64encode(chain).decode()}
    wanted = read_evidence(report, [chain]).evidence
    assert read_evidence(json.dumps([gpu]).encode()).evidence == wanted
    assert read_evidence(json.dumps({"evidence_list": [gpu, gpu]}).encode(), device=1).evidence == wanted
    with pytest.raises(FormatError, match="of 2 GPUs") as refusal:
        read_evidence(json.dumps([gpu, gpu]).encode())
    assert "--device" in str(refusal.value.hint)
    with pytest.raises(UsageError, match="got 2, wanted 0 to 1"):
        read_evidence(json.dumps([gpu, gpu]).encode(), device=2)
    for one in (json.dumps(gpu).encode(), wanted.quote, wanted.quote.hex().encode()):
        assert read_evidence(one, device=0).evidence.quote == wanted.quote
        for wrong in (1, -1):
            with pytest.raises(UsageError, match="device: got"):
                read_evidence(one, device=wrong)


def test_trustee_s_composite_brings_the_gpus_along():
    report = bytes.fromhex(raw("nvidia-gpu/hopper_report.hex").decode())
    gpu = {"evidence": base64.b64encode(report).decode()}
    gpu |= {"certificate": base64.b64encode(raw("nvidia-gpu/hopper_chain.pem")).decode()}
    primary = {"quote": base64.b64encode(raw("dcap-tdx/tdx_v4_gcp_cos113.quote.bin")).decode()}
    more = json.dumps({"nvidia": {"device_evidence_list": [gpu, gpu]}})
    composite = {"primary_evidence": primary, "additional_evidence": more}
    found = read_evidence(json.dumps(composite).encode())
    assert found.form == "DCAP quote, version 4 in base64 in JSON, with that of 2 GPUs"
    assert [each.tee for each in found.evidence.devices] == ["nvidia", "nvidia"]
    for odd in ("x", "[]", '{"csv": {}}', '{"nvidia": {}}', 7):
        with pytest.raises(FormatError):
            read_evidence(json.dumps(composite | {"additional_evidence": odd}).encode())
    for odd in ("x", None, composite):
        with pytest.raises(FormatError):
            read_evidence(json.dumps(composite | {"primary_evidence": odd}).encode())


# What is not evidence.


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b'[reference]\ntees = ["snp"]\n', "got TOML"),
        (b"hello, world", "of no form that is known"),
        (b"\x7fELF" + bytes(2000), "of no form that is known"),
        (b"{}", "a JSON object of nothing"),
        (b"[1]", "a JSON list"),
        (b"HCLA" + bytes(2000), "HCL report of Azure's alone"),
        (b'{"quote": "AAAA"}', "whose quote is of no form"),
        (b'{"quote": "\xc3\xa9"}', "whose quote is of no form"),
        (b"{" * 100_000, "does not parse"),
        (b'{"tcb_info": "{}"}', "these are endorsements"),
        (b"-----BEGIN CERTIFICATE-----\n", "PEM or DER"),
        (bytes(MAX_FILE + 1), "wanted at most"),
    ],
)
def test_what_is_no_evidence_is_refused_by_what_it_is(content, says):
    with pytest.raises(FormatError, match=says):
        read_evidence(content)


def test_endorsements_of_another_vendor_are_refused():
    collateral = raw("dcap-sgx/sgx_v3_phala.collateral.json")
    with pytest.raises(FormatError, match="Intel's collateral, which endorses"):
        read_evidence(raw("sev-snp/milan_v2.report.bin"), [collateral])
    with pytest.raises(FormatError, match="endorsements of sgx: not Intel's collateral"):
        read_evidence(raw("dcap-sgx/sgx_v3_phala.quote.bin"), [raw("sev-snp/milan_v2.leaf.der")])
    with pytest.raises(FormatError, match="2 files, wanted one"):
        read_evidence(raw("dcap-sgx/sgx_v3_phala.quote.bin"), [collateral, collateral])


def refused_or_read(content: bytes) -> None:
    try:
        evidence = read_evidence(content).evidence
        assert isinstance(evidence, Evidence)
        explain(evidence)
    except StrongroomError:
        pass


@given(st.binary(max_size=200), st.sampled_from(["", "{", '{"attestation_report":', '{"tpm_quote":{"pcrs":[]},"x":']))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_read_or_refused(content, prefix):
    refused_or_read(prefix.encode() + content)
    try:
        certificates_in(prefix.encode() + content)
        read_key(content)
    except FormatError:
        pass


def test_a_chain_as_an_object_of_certificates_is_taken_or_refused():
    report, leaf = raw("sev-snp/milan_v3_vlek.report.bin"), raw("sev-snp/milan_v3_vlek.leaf.der")
    fields = sev_json(report, old=False)
    pem = VendorCertificate(leaf).pem()
    for shown in (pem, base64.b64encode(leaf).decode(), list(leaf)):
        document = {"attestation_report": fields, "cert_chain": {"vlek": shown, "ask": None}}
        found = read_evidence(json.dumps(document).encode())
        assert found.evidence == read_evidence(report, [leaf]).evidence
    for chain in ({"leaf": pem}, {"vlek": pem + pem}, {"vlek": {}}, "garbage", 7, False):
        with pytest.raises(FormatError):
            read_evidence(json.dumps({"attestation_report": fields, "cert_chain": chain}).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 300) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["quote", "tpm_quote", "pcrs", "message", "signature", "ak_public", "hcl_report", "data"])
            | st.sampled_from(
                [
                    "primary_evidence",
                    "additional_evidence",
                    "attestation_report",
                    "cert_chain",
                    "evidence",
                    "certificate",
                    "evidences",
                    "tee",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_any_json_is_read_or_refused(document):
    content = json.dumps(document).encode()
    refused_or_read(content)
    with contextlib.suppress(FormatError):
        certificates_in(content)


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=100, deadline=None)
def test_altered_evidence_is_explained_or_refused(name, data):
    content = bytearray(raw(name))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    refused_or_read(bytes(content[: data.draw(st.integers(1, len(content)))]))
    refused_or_read(bytes(content))
