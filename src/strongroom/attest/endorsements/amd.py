"""What AMD's key distribution service (KDS) says about a processor, for SNP reports.

"Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (57230), chapter 4:
``GET /vcek/v1/PRODUCT/CHIP?blSPL=..&teeSPL=..&snpSPL=..&ucodeSPL=..`` (DER), ``/{vcek,vlek}/v1/PRODUCT/cert_chain``
(PEM), ``/{vcek,vlek}/v1/PRODUCT/crl`` (DER). For Turin the chip has 8 bytes, and ``fmcSPL`` comes first.

- The service turns away, with status 429, whoever asks often. A certificate that came with the evidence is kept.
- A provider's key (VLEK) is certified to that provider alone: its certificate has to come with the evidence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from strongroom.attest.endorsements.endorsement import Endorsement, Want
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.parse.snp import PRODUCTS, parse_snp, tcb_components
from strongroom.crypto.chains import RevocationList, VendorCertificate, pem_certificates
from strongroom.errors import FormatError, UsageError, VerificationError

KDS = "https://kdsintf.amd.com"
Key = Literal["vcek", "vlek"]

# KDS's parameters and the extensions of a chip's certificate (57230, table 8), by `parse.snp`'s names of components, in
# the order of KDS's parameters.
_COMPONENTS = {
    "fmc": ("fmcSPL", "1.3.6.1.4.1.3704.1.3.9"),
    "bootloader": ("blSPL", "1.3.6.1.4.1.3704.1.3.1"),
    "tee": ("teeSPL", "1.3.6.1.4.1.3704.1.3.2"),
    "snp": ("snpSPL", "1.3.6.1.4.1.3704.1.3.3"),
    "microcode": ("ucodeSPL", "1.3.6.1.4.1.3704.1.3.8"),
}
_CHIP_OID = "1.3.6.1.4.1.3704.1.4"
_CHIP_SIZES = {"Milan": 64, "Genoa": 64, "Turin": 8}
# Nothing in a report before version 3 tells them apart; Turin came later.
_BEFORE_VERSION_3 = ("Milan", "Genoa")
_LEAF: Mapping[Key, re.Pattern[str]] = {
    "vcek": re.compile(r"CN=SEV-VCEK(?:,|$)"),
    "vlek": re.compile(r"CN=SEV-VLEK(?:,|$)"),
}
_ISSUER = re.compile(r"CN=SEV-(?:VLEK-)?(\w+)")


@dataclass(frozen=True)
class Processor:
    """What AMD's endorsements of a processor depend on.

    Attributes:
        products: which of `PRODUCTS` it may be, the likeliest first: one, but for reports of version 2.
        key: which key signed.
        chip: CHIP_ID, 64 bytes; zero if the host hides it.
        tcb: REPORTED_TCB, 8 bytes as in the report.
    """

    products: tuple[str, ...]
    key: Key
    chip: bytes
    tcb: bytes

    @classmethod
    def of_report(cls, report: bytes, *, product: str | None = None) -> Self:
        """The processor of an SNP report.

        Args:
            product: what it is, for those who know; else it is read from the report, or tried.

        Raises:
            FormatError: it is no SNP report, or of a processor that is unknown here.
            UsageError: `product` is none of `PRODUCTS`.
        """
        if product is not None and product not in PRODUCTS:
            raise UsageError(f"product: got {product[:40]!r}, wanted one of {', '.join(PRODUCTS)}")
        parsed = parse_snp(report)
        told = product or parsed.product
        key: Key = "vcek" if parsed.signing_key == "VCEK" else "vlek"
        return cls((told,) if told else _BEFORE_VERSION_3, key, parsed.chip_id, parsed.reported_tcb)


def certificate_want(product: str, chip: bytes, tcb: bytes, *, service: str = KDS) -> Want:
    """The certificate of a chip's key (VCEK) at a TCB.

    Args:
        chip: CHIP_ID, 64 bytes, of which Turin's 8 are used.
        tcb: TCB_VERSION, 8 bytes as in reports.

    Raises:
        VerificationError: the host hides the chip, so that nothing can be asked for.
    """
    if product not in PRODUCTS or len(chip) != 64 or len(tcb) != 8:
        raise UsageError(f"certificate: got {product[:40]!r}, chip of {len(chip)} bytes, TCB of {len(tcb)}")
    identity = chip[: _CHIP_SIZES[product]]
    if not any(identity):
        raise VerificationError(
            "SNP report: CHIP_ID is zero, so AMD cannot be asked for the certificate of its key",
            hint="the host hides it (MASK_CHIP_ID): let it hand the certificate to its guests",
        )
    values = _values(tcb_components(tcb, product))
    query = "&".join(f"{parameter}={value}" for parameter, value in values.items())
    return Want(_name(product, identity, values), f"{_base(service)}/vcek/v1/{product}/{identity.hex()}?{query}")


def issuer_wants(product: str, key: Key, *, service: str = KDS) -> tuple[Want, Want]:
    """What issues such keys' certificates, and its revocation list."""
    name, url = f"amd/{product}/{key}", f"{_base(service)}/{key}/v1/{product}"
    return Want(f"{name}/chain", f"{url}/cert_chain"), Want(f"{name}/crl", f"{url}/crl")


def compose(leaf: VendorCertificate, chain: Endorsement | None, lists: Sequence[RevocationList]) -> bytes:
    """Endorsements as evidence carries them (`parse/endorsements.py`): leaf first, without the root. `verify` has AMD's
    issuers at hand where there is no chain."""
    issuers = [each for each in pem_certificates(chain.body) if each.subject != each.issuer] if chain else []
    return Endorsements((leaf, *issuers), tuple(lists)).to_bytes()


def product_of(leaf: VendorCertificate) -> str | None:
    """The product that a certificate's issuer names (``SEV-Milan``, ``SEV-VLEK-Genoa``), None if it names none."""
    found = _ISSUER.match(leaf.issuer)
    return found[1] if found and found[1] in PRODUCTS else None


def name_of(leaf: VendorCertificate) -> str:
    """The name, as an endorsement, of the certificate of a chip's key.

    Raises:
        FormatError: it is no such certificate.
    """
    product = product_of(leaf)
    if product is None or not _LEAF["vcek"].match(leaf.subject):
        raise FormatError(f"certificate {leaf.subject!r:.120}: not of the key of a chip of AMD's")
    chip = _octets(leaf.extension(_CHIP_OID) or b"", _CHIP_SIZES[product])
    return _name(product, chip, _values(_certified_tcb(leaf, product)))


def certifies(certificate: VendorCertificate, processor: Processor) -> bool:
    """Whether it is, by its own words, the certificate of the key that signed that processor's report."""
    product = product_of(certificate)
    if product not in processor.products or not _LEAF[processor.key].match(certificate.subject):
        return False
    if processor.key == "vlek":
        return True
    try:
        named = name_of(certificate).split("/")
        wanted = _values(tcb_components(processor.tcb, product or ""))
    except FormatError:
        return False
    # A host may hide the chip: then AMD's signature alone tells.
    hidden = not any(processor.chip)
    return named[4] == _joined(wanted) and (hidden or processor.chip.hex().startswith(named[3]))


def _name(product: str, chip: bytes, values: Mapping[str, int]) -> str:
    return f"amd/{product}/vcek/{chip.hex()}/{_joined(values)}"


def _joined(values: Mapping[str, int]) -> str:
    return "-".join(map(str, values.values()))


def _values(tcb: Mapping[str, int]) -> dict[str, int]:
    """A TCB's components by KDS's parameters, in their order."""
    return {parameter: tcb[name] for name, (parameter, _) in _COMPONENTS.items() if name in tcb}


def _certified_tcb(leaf: VendorCertificate, product: str) -> dict[str, int]:
    tcb = {}
    for name in tcb_components(bytes(8), product):
        value = leaf.extension(_COMPONENTS[name][1]) or b""
        # DER INTEGER of a byte: 02 01 xx, or 02 02 00 xx from 128 on.
        if len(value) not in (3, 4) or value[:-1] not in (b"\2\1", b"\2\2\0"):
            raise FormatError(f"certificate {leaf.subject!r:.120}: has no {name}")
        tcb[name] = value[-1]
    return tcb


def _octets(value: bytes, size: int) -> bytes:
    """The octets of an extension, which AMD writes bare, or as a DER OCTET STRING."""
    bare = value[2:] if len(value) == size + 2 and value[:2] == bytes([4, size]) else value
    if len(bare) != size:
        raise FormatError(f"certificate: names a chip in {len(bare)} bytes, wanted {size}")
    return bare


def _base(service: str) -> str:
    return service.rstrip("/")
