"""Verify the attestation reports of AMD SEV-SNP.

1. Parse the report and its endorsements: certificates of the key that signed it (the leaf), and perhaps of its
   issuers; others, which some hosts hand out too, are left aside.
2. The leaf is of the kind that the report names: a chip's key (VCEK) or a cloud provider's (VLEK). Its issuer's name,
   its extension and, from version 3 on, the report's CPUID agree on the product.
3. Follow the chain from the leaf to the product's root (ARK) at `now`, RSA-PSS with SHA-384 and a salt of 48 bytes all
   along, with the revocation lists that came along. The issuers (ASK, ASVK) are at hand where the evidence lacks them.
4. What the leaf certifies is what the report says: the TCB that the key was derived for, and the chip.
5. The leaf's key, on P-384, signed the report: ECDSA with SHA-384 over bytes 0 to 0x29F.

Source: AMD, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (57230), revision 1.00,
chapter 3 (certificates), for steps 2 to 4; 56860 (`parse/snp.py`) for the report.

Decisions:

- A host may hide the chip in the report (CHIP_ID zero, MASK_CHIP_ID). If the leaf is a chip's, it still names the chip,
  and that is the hardware id; under a provider's key it is then unknown, and no allow-list of hardware accepts it.
- `tcb` is the reported TCB, the one that the key stands for. Current, committed and launch TCB are attributes: a
  firmware that its reported TCB does not vouch for could write them at will.
- A VMPL other than 0 is the weakness ``vmpl``: software at VMPL 0 in the same guest may read and write all of it. A bit
  of the guest's policy that is unknown here is ``policy-bits``. A migration agent is `migratable`.
- A guest whose policy allows debugging is authentic: `debug` is set, and `appraise` refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import parse_endorsements
from strongroom.attest.parse.snp import PRODUCTS, SnpReport, parse_snp, tcb_components
from strongroom.attest.verify.anchors import AMD_INTERMEDIATES, Anchors
from strongroom.attest.verify.revocation import revocation
from strongroom.crypto import equal
from strongroom.crypto.chains import VendorCertificate, verify_chain
from strongroom.errors import FormatError, VerificationError

_SCHEME = "RSA-PSS sha384 48"

# Names as in RFC 4514: the common name is AMD's last, so it is written first.
_ISSUER = re.compile(r"CN=SEV-(VLEK-)?([A-Za-z]+)(?:,|\Z)")
# The leaf's extensions.
_OIDS = "1.3.6.1.4.1.3704.1"
_PRODUCT_NAME, _HARDWARE_ID, _PROVIDER = f"{_OIDS}.2", f"{_OIDS}.4", f"{_OIDS}.5"
_TCB = {
    "bootloader": f"{_OIDS}.3.1",
    "tee": f"{_OIDS}.3.2",
    "snp": f"{_OIDS}.3.3",
    "microcode": f"{_OIDS}.3.8",
    "fmc": f"{_OIDS}.3.9",
}
# Products whose chips sign with another's chain.
_SIBLINGS = {"Bergamo": "Genoa", "Siena": "Genoa"}
_CHIP_ID = 64
_CHIP_ID_OF_TURIN = 8
_INTEGER, _OCTETS, _IA5 = 0x02, 0x04, 0x16


def verify_snp(evidence: Evidence, anchors: Anchors, now: int) -> Claims:
    """The claims of a guest's report, by the steps at the top of this file."""
    # 1
    report = parse_snp(evidence.quote)
    endorsements = parse_endorsements(evidence.endorsements)
    leaf = _leaf(endorsements.certificates, report)
    # 2
    product = _product(leaf, report)
    # 3
    root = anchors.amd.get(product)
    if root is None:
        raise VerificationError(f"product: got {product}, wanted {' or '.join(anchors.amd) or 'none'}")
    at_hand = (*endorsements.certificates, *AMD_INTERMEDIATES[product])
    chain = [leaf, *[each for each in at_hand if each.subject == leaf.issuer][:1]]
    for certificate in chain:
        if certificate.signed_with != _SCHEME:
            raise VerificationError(f"certificate {certificate.subject!r:.120}: signed with {certificate.signed_with}")
    verify_chain(chain, root, now=now, revocation_lists=endorsements.revocation_lists)
    # 4
    tcb = tcb_components(report.reported_tcb, product)
    certified = {name: _number(leaf, _TCB[name]) for name in tcb}
    if certified != tcb:
        raise VerificationError(
            f"{report.signing_key}: certified for TCB {_versions(certified)}, but the report says {_versions(tcb)}",
            hint="a key is certified for one TCB: get the certificate for the report's",
        )
    hardware_id = _chip(leaf, report, product)
    # 5
    if leaf.key.kind != "P-384":
        raise VerificationError(f"{report.signing_key}: a key on {leaf.key.kind}, wanted P-384")
    leaf.key.verify_ecdsa(report.r, report.s, report.signed, algorithm="sha384")
    return Claims(
        tee="snp",
        measurement=report.measurement.hex(),
        registers=_registers(report),
        report_data=report.report_data,
        debug=report.policy.bits["debug_allowed"],
        vendor_root=root.fingerprint,
        hardware_id=hardware_id,
        signer=report.id_key_digest.hex() if any(report.id_key_digest) else "",
        product=product,
        tcb=tcb,
        migratable=report.migration_agent,
        weaknesses=_weaknesses(report),
        attributes=_attributes(report)
        | ({"provider": _provider(leaf)} if report.signing_key == "VLEK" else {})
        | {"revocation": "lists" if endorsements.revocation_lists else "not checked"},
        # AMD publishes one list for each kind of key, and the root signs it: of intermediates (57230, chapter 4).
        revocation=revocation(endorsements.revocation_lists, [root.subject]),
    )


def _versions(tcb: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {version}" for name, version in tcb.items())


def _leaf(certificates: Sequence[VendorCertificate], report: SnpReport) -> VendorCertificate:
    """The first that says that it is of the kind of key which signed the report."""
    if not certificates:
        raise FormatError(
            f"endorsements: no certificates, wanted that of the {report.signing_key} which signed the report",
            hint="give it with --endorsements FILE, or have it fetched from AMD with --fetch"
            if report.signing_key == "VCEK"
            else "give it with --endorsements FILE: AMD gives a VLEK's to the cloud provider, whose hosts hand it out",
        )
    named = [each for each in certificates if re.match(rf"CN=SEV-{report.signing_key}(,|\Z)", each.subject)]
    return (*named, *certificates)[0]


def _product(leaf: VendorCertificate, report: SnpReport) -> str:
    """Step 2. Nothing is verified yet: step 3 follows the chain to the root of this very product."""
    found = _ISSUER.match(leaf.issuer)
    kind = ("VLEK" if found[1] else "VCEK") if found else "neither VCEK nor VLEK"
    if (
        found is None
        or kind != report.signing_key
        or not re.match(rf"CN=SEV-{kind}(,|\Z)", leaf.subject)
        or (leaf.extension(_HARDWARE_ID) is None) != (kind == "VLEK")
    ):
        raise VerificationError(
            f"leaf certificate {leaf.subject!r:.120} of {leaf.issuer!r:.120}: wanted that of the {report.signing_key} "
            "which signed the report"
        )
    product, named = found[2], _text(leaf, _PRODUCT_NAME).partition("-")[0]
    if product not in PRODUCTS or _SIBLINGS.get(named, named) != product:
        raise VerificationError(f"product: the leaf's issuer says {product[:40]!r}, the leaf {named[:40]!r}")
    if report.product not in (None, product):
        raise VerificationError(f"product: the leaf is of {product}, but the report's processor of {report.product}")
    return product


def _chip(leaf: VendorCertificate, report: SnpReport, product: str) -> str:
    """Step 4 for the chip: its id as AMD's certificates have it, in hexadecimal digits; empty if it is not told."""
    size = _CHIP_ID_OF_TURIN if product == "Turin" else _CHIP_ID
    told = report.chip_id[:size] if any(report.chip_id) else b""
    if any(report.chip_id[size:]):
        raise VerificationError(f"chip id: wanted zeros after {size} bytes, as {product}'s has them")
    certified = leaf.extension(_HARDWARE_ID)
    if certified is None:
        return told.hex()
    # Older certificates hold the bytes as they are, newer ones an OCTET STRING of them.
    if len(certified) == size + 2 and certified[:2] == bytes([_OCTETS, size]):
        certified = certified[2:]
    if len(certified) != size:
        raise FormatError(f"VCEK certificate: a hardware id of {len(certified)} bytes, wanted {size}")
    if told and not equal(told, certified):
        raise VerificationError(f"VCEK: of chip {certified.hex()[:32]}..., but the report is of {told.hex()[:32]}...")
    return certified.hex()


def _number(leaf: VendorCertificate, oid: str) -> int:
    """An INTEGER of 0 to 255, in DER."""
    raw = leaf.extension(oid) or b""
    if len(raw) == 3 and raw[:2] == bytes([_INTEGER, 1]) and raw[2] < 0x80:
        return raw[2]
    if len(raw) == 4 and raw[:3] == bytes([_INTEGER, 2, 0]) and raw[3] >= 0x80:
        return raw[3]
    raise FormatError(f"leaf certificate: extension {oid} is missing, or no number of one byte")


def _text(leaf: VendorCertificate, oid: str) -> str:
    """An IA5String of at most 127 characters, in DER."""
    raw = leaf.extension(oid) or b""
    text = raw[2:]
    if raw[:2] != bytes([_IA5, min(len(text), 0xFF)]) or len(text) > 0x7F or not text.isascii():
        raise FormatError(f"leaf certificate: extension {oid} is missing, or no text of at most 127 characters")
    return text.decode()


def _provider(leaf: VendorCertificate) -> str:
    """To whom AMD gave the key."""
    text = _text(leaf, _PROVIDER)
    if not text.isprintable():
        raise FormatError(f"leaf certificate: extension {_PROVIDER} is not printable")
    return text


def _weaknesses(report: SnpReport) -> tuple[str, ...]:
    return (
        *(["vmpl"] if report.vmpl else []),
        *(["policy-bits"] if report.policy.unknown else []),
    )


def _registers(report: SnpReport) -> dict[str, str]:
    """What was given at launch, each for a policy to ask for."""
    registers = {
        "host_data": report.host_data,
        "family_id": report.family_id,
        "image_id": report.image_id,
        "id_key_digest": report.id_key_digest,
        "author_key_digest": report.author_key_digest,
    }
    return {name: value.hex() for name, value in registers.items()}


def _attributes(report: SnpReport) -> dict[str, str | int | bool]:
    attributes: dict[str, str | int | bool] = {
        "report_version": report.version,
        "guest_svn": report.guest_svn,
        "vmpl": report.vmpl,
        "signing_key": report.signing_key,
        "policy": f"{report.policy.raw:#x}",
        "policy_abi": ".".join(map(str, report.policy.abi)),
        **{f"policy_{name}": value for name, value in report.policy.bits.items()},
        "platform_info": f"{report.platform_info:#x}",
        **{f"platform_{name}": value for name, value in report.platform.items()},
        "author_key_enabled": report.author_key_enabled,
        "chip_key_masked": report.chip_key_masked,
        "chip_id_masked": not any(report.chip_id),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "current_tcb": report.current_tcb.hex(),
        "committed_tcb": report.committed_tcb.hex(),
        "launch_tcb": report.launch_tcb.hex(),
        "current_version": ".".join(map(str, report.current_version)),
        "committed_version": ".".join(map(str, report.committed_version)),
    }
    if report.cpuid is not None:
        attributes["cpuid"] = "family {:#x}, model {:#x}, stepping {:#x}".format(*report.cpuid)
    if report.launch_mitigations is not None and report.current_mitigations is not None:
        attributes["launch_mitigations"] = f"{report.launch_mitigations:#x}"
        attributes["current_mitigations"] = f"{report.current_mitigations:#x}"
    return attributes
