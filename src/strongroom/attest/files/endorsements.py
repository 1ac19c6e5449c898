"""Files of endorsements, in the forms that vendors and other tools write: recognised by their content.

| form | of whom |
|---|---|
| JSON with `tcb_info`: collateral as `dcap-qvl` writes it | Intel |
| JSON with `certificates`: this project's own (`parse/endorsements.py`) | all others |
| PEM or DER, certificates and revocation lists | all others |
| a table of certificates by GUID (`parse/certificate_table.py`) | AMD |
| JSON with `vcekCert` and `certificateChain`: the answer of Azure's THIM service | AMD |
| a JSON list of `cert_type` and `data`: the `sev` crate's table; within evidence also an object by kind | AMD |

Nothing of it is trusted, so what comes twice or in another order does no harm: `Endorsements` gets it leaf first.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strongroom.attest.parse.certificate_table import parse_certificate_table
from strongroom.attest.parse.endorsements import MAX_REVOCATION_LISTS, Endorsements, parse_endorsements
from strongroom.crypto.chains import RevocationList, VendorCertificate, pem_certificates
from strongroom.errors import FormatError, printable

_PEM_LIST = re.compile(rb"-----BEGIN X509 CRL-----([A-Za-z0-9+/=\s]+)-----END X509 CRL-----")
_MAX_CERTIFICATES = 16
_KNOWN = (
    "known are: certificates and revocation lists in PEM or DER, AMD's certificate table, and the JSON of this "
    "project, of Azure's THIM and of the sev crate"
)
_AMD_NAMES = ("vcek", "vlek", "ask", "asvk", "ark")
_INTEL = ("sgx", "tdx", "azure-tdx", "simulated")


def read_endorsements(tee: str, files: Sequence[bytes]) -> bytes:
    """What `Evidence.endorsements` holds, from the bytes of the files; none of them gives none.

    Raises:
        FormatError: a file is of no form above, of another vendor's than `tee` is, or there is one too many.
    """
    if tee in _INTEL:
        for raw in files:
            if not _is_collateral(_json(raw)):
                raise FormatError(
                    f"endorsements of {tee}: not Intel's collateral",
                    hint="wanted JSON with tcb_info, as `strongroom attest endorsements` and dcap-qvl write it",
                )
        if len(files) > 1:
            raise FormatError(f"endorsements of {tee}: got {len(files)} files, wanted one of collateral")
        return files[0] if files else b""
    certificates: list[VendorCertificate] = []
    lists: list[RevocationList] = []
    for raw in files:
        found = certificates_in(raw)
        certificates += [each for each in found.certificates if each not in certificates]
        lists += found.revocation_lists
    if len(certificates) > _MAX_CERTIFICATES or len(lists) > MAX_REVOCATION_LISTS:
        raise FormatError(f"endorsements: {len(certificates)} certificates and {len(lists)} revocation lists, too many")
    return Endorsements(leaf_first(certificates), tuple(lists)).to_bytes()


def certificates_in(raw: bytes) -> Endorsements:
    """The certificates and revocation lists of one file, of any form above but Intel's.

    Raises:
        FormatError: it is of none of them.
    """
    if not raw.strip():
        raise FormatError("endorsements: the file is empty", hint=_KNOWN)
    document = _json(raw)
    if isinstance(document, dict) and "certificates" in document:
        return parse_endorsements(raw.strip())
    if isinstance(document, dict) and isinstance(document.get("vcekCert"), str):
        chain = document.get("certificateChain", "")
        return _pem(
            (document["vcekCert"] + "\n" + (chain if isinstance(chain, str) else "")).encode("ascii", "replace")
        )
    if isinstance(document, list):
        return certificates_in_table(document)
    if _is_collateral(document):
        raise FormatError("endorsements: Intel's collateral, which endorses sgx and tdx only")
    if document is not None:
        raise FormatError("endorsements: JSON, but of no form that is known here", hint=_KNOWN)
    if b"-----BEGIN" in raw:
        return _pem(raw)
    if raw[:1] == b"\x30":
        return _der(raw)
    try:
        return parse_certificate_table(raw)
    except FormatError as error:
        # Such a table has no mark of its own: it is what nothing else looks like.
        raise FormatError(
            f"endorsements: got {len(raw)} bytes, which start with {raw[:16].hex()} and are of no form that is known "
            f"here ({error.message})",
            hint=_KNOWN,
        ) from None


def certificates_in_table(entries: list[Any]) -> Endorsements:
    """The certificates of the `sev` crate's table, in its order.

    Raises:
        FormatError: an entry is none, or there are too many.
    """
    if len(entries) > _MAX_CERTIFICATES:
        raise FormatError(f"endorsements: {len(entries)} certificates, wanted at most {_MAX_CERTIFICATES}")
    return Endorsements(leaf_first([_entry(each) for each in entries]))


def certificates_by_name(entries: Mapping[str, Any]) -> Endorsements:
    """The certificates of an object of them, such as ``{"vcek": ...}``: PEM, base64 of DER, or a list of bytes.

    Raises:
        FormatError: a name is of no kind of AMD's certificates, or an entry is none.
    """
    for name in entries:
        if name.lower() not in _AMD_NAMES:
            raise FormatError(
                f"endorsements: got {printable(name[:40])!r}, wanted certificates named {', '.join(_AMD_NAMES)}"
            )
    given = [each for each in entries.values() if each is not None]
    return Endorsements(leaf_first([_entry({"data": each}) for each in given]))


def leaf_first(certificates: Sequence[VendorCertificate]) -> tuple[VendorCertificate, ...]:
    """Those certificates in the order of issue, as far as their names tell one; the others after them."""
    rest = list(certificates)
    issuers = {each.issuer for each in rest if each.issuer != each.subject}
    leaf = next((each for each in rest if each.subject not in issuers), None)
    ordered: list[VendorCertificate] = []
    while leaf is not None:
        rest.remove(leaf)
        ordered.append(leaf)
        wanted = leaf.issuer
        leaf = next((each for each in rest if each.subject == wanted), None)
    return (*ordered, *rest)


def _pem(raw: bytes) -> Endorsements:
    lists = tuple(RevocationList(_base64(each)) for each in _PEM_LIST.findall(raw))
    certificates = pem_certificates(raw) if b"BEGIN CERTIFICATE" in raw or not lists else ()
    return Endorsements(certificates, lists)


def _der(raw: bytes) -> Endorsements:
    attempts: tuple[Callable[[], Endorsements], ...] = (
        lambda: Endorsements((VendorCertificate(raw),)),
        lambda: Endorsements((), (RevocationList(raw),)),
    )
    for attempt in attempts:
        try:
            return attempt()
        except FormatError:
            continue
    raise FormatError("endorsements: DER, but neither a certificate nor a revocation list")


def _entry(entry: Any) -> VendorCertificate:
    data = entry.get("data") if isinstance(entry, dict) else None
    if isinstance(data, str) and data.lstrip().startswith("-----BEGIN"):
        (certificate, *more) = pem_certificates(data.encode("ascii", "replace"))
        if more:
            raise FormatError(f"endorsements: {len(more) + 1} certificates in one entry, wanted one")
        return certificate
    if isinstance(data, str):
        return VendorCertificate(_base64(data.encode("ascii", "replace")))
    try:
        return VendorCertificate(bytes(data if isinstance(data, list) else ()))
    except (ValueError, TypeError):
        raise FormatError("endorsements: data of a certificate: wanted a list of bytes, base64 or PEM") from None


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error:
        raise FormatError("endorsements: not base64") from None


def _is_collateral(document: Any) -> bool:
    return isinstance(document, dict) and "tcb_info" in document


def _json(raw: bytes) -> Any:
    """The document, None if it is none."""
    if raw.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
