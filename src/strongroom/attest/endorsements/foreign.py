"""Endorsements in files of other tools' making, read into ours: what a bundle can be made of without a network.

| file | of |
|---|---|
| a bundle | Strongroom |
| JSON with `collaterals`: platform collateral, as ``pccsadmin fetch`` writes it for an offline PCCS | Intel |
| JSON with `tcb_info`: the collateral of one quote, as `dcap-qvl` and the tools around it write it | Intel |
| certificates of chips or of issuers, PEM or DER; the answer of Azure's THIM service; `sev`'s table | AMD |
| revocation lists, PEM or DER, with certificates or by themselves | AMD |

AMD's root signs the lists for both kinds of key, so one of its lists stands for both. A list of Intel's belongs with
its signer's chain, and one of NVIDIA's does not say of which file it is a copy: those are fetched, or come in a bundle.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from strongroom.attest.endorsements import amd
from strongroom.attest.endorsements.bundle import FORMAT, MAX_BUNDLE, Bundle
from strongroom.attest.endorsements.endorsement import Endorsement
from strongroom.attest.files.endorsements import certificates_in
from strongroom.attest.parse.snp import PRODUCTS
from strongroom.crypto.chains import RevocationList, VendorCertificate
from strongroom.errors import FormatError

_TCB_MEMBERS = (
    ("tcbinfo", "sgx", ""),  # version 3 of Intel's service
    ("sgx_tcbinfo", "sgx", ""),
    ("tdx_tcbinfo", "tdx", ""),
    ("sgx_tcbinfo_early", "sgx", "/early"),
    ("tdx_tcbinfo_early", "tdx", "/early"),
)
_QE_MEMBERS = (
    ("qeidentity", "sgx", ""),
    ("tdqeidentity", "tdx", ""),
    ("qeidentity_early", "sgx", "/early"),
    ("tdqeidentity_early", "tdx", "/early"),
)
_TCB_CHAINS = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
_QE_CHAIN = "SGX-Enclave-Identity-Issuer-Chain"
_PCK_CHAIN = "SGX-PCK-Certificate-Issuer-Chain"
_QE_IDS = {"QE": "sgx", "TD_QE": "tdx"}


def endorsements_in(raw: bytes, *, now: int) -> tuple[Endorsement, ...]:
    """What a file of one of the forms above holds.

    Args:
        now: when they count as fetched, where the file does not say.

    Raises:
        FormatError: it is of none of them, or one endorsement in it does not parse.
    """
    if len(raw) > MAX_BUNDLE:
        raise FormatError(f"endorsements: {len(raw)} bytes, wanted at most {MAX_BUNDLE}")
    document = _json(raw)
    if isinstance(document, dict):
        if document.get("format") == FORMAT:
            return tuple(Bundle.from_bytes(raw))
        if isinstance(document.get("collaterals"), dict):
            return tuple(_platform_collateral(document["collaterals"], now))
        if "tcb_info" in document:
            return tuple(_quote_collateral(document, now))
    found = tuple(_certificates(raw, now))
    if not found:
        raise FormatError(
            "endorsements: there are none in the file", hint="docs/how-to/endorsements.md lists the files that are read"
        )
    return found


def _platform_collateral(collaterals: Mapping[str, Any], now: int) -> Iterator[Endorsement]:
    """Chains are percent-encoded, as they came in headers. What a platform has no use for may be empty or absent."""
    chains = collaterals.get("certificates")
    chains = chains if isinstance(chains, dict) else {}
    tcb_chain = next((unquote(_text(chains.get(name))) for name in _TCB_CHAINS if chains.get(name)), "")
    infos = collaterals.get("tcbinfos")
    for info in infos if isinstance(infos, list) else ():
        if not isinstance(info, dict):
            raise FormatError("platform collateral: tcbinfos: wanted a list of objects")
        for member, tee, mark in _TCB_MEMBERS:
            if info.get(member):
                name = f"intel/{tee}/tcb/{_text(info.get('fmspc')).upper()}{mark}"
                yield Endorsement.read(name, _as_signed(info[member]), chain=tcb_chain, fetched=now)
    for member, tee, mark in _QE_MEMBERS:
        if collaterals.get(member):
            body, chain = _as_signed(collaterals[member]), unquote(_text(chains.get(_QE_CHAIN)))
            yield Endorsement.read(f"intel/{tee}/qe{mark}", body, chain=chain, fetched=now)
    lists, pck_chains = collaterals.get("pckcacrl"), chains.get(_PCK_CHAIN)
    for ca in ("processor", "platform"):
        digits = lists.get(f"{ca}Crl") if isinstance(lists, dict) else None
        encoded = pck_chains.get(ca.upper()) if isinstance(pck_chains, dict) else None
        # Both lists are always there, but a chain only if a platform's certificate needed it.
        if digits and encoded:
            yield Endorsement.read(f"intel/crl/{ca}", _bytes(digits), chain=unquote(_text(encoded)), fetched=now)
    if collaterals.get("rootcacrl"):
        yield Endorsement.read("intel/crl/root", _bytes(collaterals["rootcacrl"]), fetched=now)


def _as_signed(value: object) -> bytes:
    """Intel signs JSON without blanks, and the members' order is the file's; so it can be written as it was signed."""
    if isinstance(value, str):
        return _bytes(value)
    return json.dumps(value, separators=(",", ":")).encode()


def _quote_collateral(document: Mapping[str, Any], now: int) -> Iterator[Endorsement]:
    read = {name: _text(document.get(name)) for name in document}

    def signed(member: str, name: str) -> tuple[bytes, dict[str, Any]]:
        text = read.get(name, "")
        body = f'{{"{member}":{text},"signature":"{read.get(f"{name}_signature", "")}"}}'
        parsed = _json(_bytes(text))
        return _bytes(body), parsed if isinstance(parsed, dict) else {}

    body, info = signed("tcbInfo", "tcb_info")
    name = f"intel/{_text(info.get('id', 'SGX')).lower()}/tcb/{_text(info.get('fmspc')).upper()}"
    yield Endorsement.read(name, body, chain=read.get("tcb_info_issuer_chain", ""), fetched=now)
    body, identity = signed("enclaveIdentity", "qe_identity")
    tee = _QE_IDS.get(_text(identity.get("id")), "unknown")
    yield Endorsement.read(f"intel/{tee}/qe", body, chain=read.get("qe_identity_issuer_chain", ""), fetched=now)
    pck_crl = _hex("pck_crl", read)
    ca = "platform" if "Platform" in RevocationList(pck_crl).issuer else "processor"
    yield Endorsement.read(f"intel/crl/{ca}", pck_crl, chain=read.get("pck_crl_issuer_chain", ""), fetched=now)
    yield Endorsement.read("intel/crl/root", _hex("root_ca_crl", read), fetched=now)


def _hex(name: str, read: Mapping[str, str]) -> bytes:
    try:
        return bytes.fromhex(read.get(name, ""))
    except ValueError:
        raise FormatError(f"collateral: {name}: not hexadecimal digits") from None


def _certificates(raw: bytes, now: int) -> Iterator[Endorsement]:
    found = certificates_in(raw)
    for each in found.revocation_lists:
        for name in _names_of(each):
            yield Endorsement.read(name, each.der, fetched=now)
    issuers: dict[str, list[VendorCertificate]] = {}
    for certificate in found.certificates:
        product, key = _issuer_of(certificate)
        if product:
            issuers.setdefault(f"amd/{product}/{key}/chain", []).append(certificate)
        elif certificate.subject != certificate.issuer:
            yield Endorsement.read(amd.name_of(certificate), certificate.der, fetched=now)
    roots = [each for each in found.certificates if each.subject == each.issuer]
    for name, chain in issuers.items():
        pem = "".join(each.pem() for each in [*chain, *roots])
        yield Endorsement.read(name, pem.encode(), fetched=now)


def _issuer_of(certificate: VendorCertificate) -> tuple[str | None, str]:
    """Of which product's keys it issues the certificates: ASK's subject is ``SEV-Milan``, ASVK's ``SEV-VLEK-Milan``."""
    name = certificate.subject.partition(",")[0]
    for product in PRODUCTS:
        if name in (f"CN=SEV-{product}", f"CN=SEV-VLEK-{product}"):
            return product, "vlek" if "VLEK" in name else "vcek"
    return None, ""


def _names_of(revocation_list: RevocationList) -> tuple[str, ...]:
    """The names, as endorsements, of a list of AMD's: of what its issuer issues."""
    common = revocation_list.issuer.partition(",")[0]
    for product in PRODUCTS:
        keys = {
            f"CN=ARK-{product}": ("vcek", "vlek"),
            f"CN=SEV-{product}": ("vcek",),
            f"CN=SEV-VLEK-{product}": ("vlek",),
        }
        if common in keys:
            return tuple(f"amd/{product}/{key}/crl" for key in keys[common])
    raise FormatError(
        f"endorsements: a revocation list of {revocation_list.issuer!r:.120} by itself, wanted one of AMD's",
        hint="Intel's come with a quote's or a platform's collateral; NVIDIA's are fetched into a bundle",
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _bytes(value: object) -> bytes:
    """The text's bytes. All that is read here is ASCII; what is not becomes something that is refused."""
    return _text(value).encode("ascii", "replace")


def _json(raw: bytes) -> object:
    try:
        return json.loads(raw) if raw.lstrip()[:1] == b"{" else None
    except (ValueError, RecursionError):
        return None
