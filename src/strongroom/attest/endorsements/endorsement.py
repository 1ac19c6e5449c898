"""One endorsement: what a vendor signed about its hardware, under a name of ours; and where its vendor serves it.

The name says what it is, whoever served it, so that a bundle made from a mirror stands in for the vendor's service:

| name | body | signer's chain beside |
|---|---|---|
| `intel/sgx/tcb/FMSPC`, `intel/tdx/tcb/FMSPC` | TCB information: JSON, byte for byte | yes |
| `intel/sgx/qe`, `intel/tdx/qe` | identity of the quoting enclave: JSON, byte for byte | yes |
| `intel/crl/processor`, `intel/crl/platform` | revocation list of that PCK CA: DER | yes |
| `intel/crl/root` | revocation list of the SGX Root CA: DER | no |
| `amd/PRODUCT/vcek/CHIP/TCB` | certificate of that chip at that TCB: DER | no |
| `amd/PRODUCT/vcek/chain`, `amd/PRODUCT/vlek/chain` | what signs chips' and providers' keys, then the root: PEM | no |
| `amd/PRODUCT/vcek/crl`, `amd/PRODUCT/vlek/crl` | revocation list: DER | no |
| `nvidia/crl/LIST` | revocation list: DER | no |

FMSPC has 12 upper-case hexadecimal digits, CHIP 128 lower-case ones (Turin: 16). TCB is what AMD's service is asked
for, in its order and joined by ``-``: [fmc-]bootloader-tee-snp-microcode. LIST is as NVIDIA names it. `/early` after a
name in Intel's first two rows marks what Intel publishes ahead of the end of a TCB recovery (``update=early``).

Nothing here is trusted: `verify` checks every signature and date again. It is parsed, and must be what its name says,
so that what a confused mirror answers is never kept.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from strongroom.crypto.chains import RevocationList, VendorCertificate, pem_certificates
from strongroom.errors import FormatError, printable

MAX_BODY = 512 * 1024
MAX_CHAIN_TEXT = 64 * 1024

DAY = 24 * 60 * 60
# Intel and AMD date their documents for 30 days and more, but publish anew at a TCB recovery or a revocation.
_DATED_MAX_AGE = DAY
# A chip's certificate for one TCB never changes, and AMD's service turns away whoever asks often.
_CERTIFICATE_MAX_AGE = 30 * DAY

_Dates = tuple[int, int]


@dataclass(frozen=True)
class Want:
    """One endorsement that evidence needs.

    Attributes:
        name: as in the table above.
        url: where it is served.
        chain_headers: the answer's headers, in lower case, of which one holds its signer's chain, percent-encoded.
    """

    name: str
    url: str
    chain_headers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Endorsement:
    """What `Endorsement.read` made of bytes from outside.

    Attributes:
        name, body, chain: as in the table above; `chain` is PEM, leaf first, or empty.
        fetched: when it was fetched, seconds since 1970.
        valid: from when until when it holds by its own dates.
        max_age: how long after `fetched` it is used without asking for a newer one.
    """

    name: str
    body: bytes = field(repr=False)
    chain: str = field(repr=False)
    fetched: int
    valid: tuple[int, int]
    max_age: int

    @classmethod
    def read(cls, name: str, body: bytes, *, chain: str = "", fetched: int) -> Endorsement:
        """Parse `body` as what `name` says.

        Revocation lists and certificates may come as DER, as PEM, or (from Intel's caching service) as hexadecimal
        digits; they are kept as DER.

        Raises:
            FormatError: there is no such name; the body or the chain is not that, or too large, or about another
                platform.
        """
        if len(body) > MAX_BODY or len(chain) > MAX_CHAIN_TEXT:
            raise FormatError(
                f"{printable(name[:200])}: {len(body)} bytes, and {len(chain)} of its signer's chain: too much"
            )
        form, parts = _form(name)
        try:
            if bool(chain) != form.chained:
                raise FormatError(f"wanted {'a' if form.chained else 'no'} chain of its signer's")
            if chain:
                pem_certificates(chain.encode("ascii", "replace"))
            if not chain.isascii():
                raise FormatError("its signer's chain is not ASCII")
            body, valid = form.parse(body, parts)
        except FormatError as error:
            raise FormatError(f"{name}: {error.message}") from None
        return cls(name, body, chain, fetched, valid, form.max_age)

    def covers(self, now: int) -> bool:
        """Whether it holds at `now` by its own dates."""
        return self.valid[0] <= now <= self.valid[1]

    def is_recent(self, now: int) -> bool:
        """Whether it holds at `now`, and need not be asked for again yet."""
        return self.covers(now) and self.fetched <= now <= self.fetched + self.max_age

    def to_wire(self) -> dict[str, object]:
        """Everything but the name, as a JSON object: `body` in base64, `chain` if there is one, `fetched`."""
        wire: dict[str, object] = {"body": base64.b64encode(self.body).decode(), "fetched": self.fetched}
        return wire | ({"chain": self.chain} if self.chain else {})

    @classmethod
    def from_wire(cls, name: str, wire: object) -> Endorsement:
        """What `to_wire` wrote, read again as `read` does.

        Raises:
            FormatError: another set of members, or what `read` refuses.
        """
        if not isinstance(wire, Mapping) or set(wire) - {"chain"} != {"body", "fetched"}:
            raise FormatError(f"{printable(name[:200])}: wanted an object of body, fetched, and chain if there is one")
        body, chain, fetched = wire["body"], wire.get("chain", ""), wire["fetched"]
        if not isinstance(body, str) or not isinstance(chain, str) or type(fetched) is not int or fetched < 0:
            raise FormatError(
                f"{printable(name[:200])}: body and chain: wanted strings; fetched: wanted seconds since 1970"
            )
        if len(body) > (MAX_BODY + 2) // 3 * 4:
            raise FormatError(f"{printable(name[:200])}: {len(body)} characters, wanted at most {MAX_BODY} bytes")
        try:
            raw = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise FormatError(f"{printable(name[:200])}: body: not base64") from None
        return cls.read(name, raw, chain=chain, fetched=fetched)


@dataclass(frozen=True)
class _Form:
    parse: Callable[[bytes, Mapping[str, str]], tuple[bytes, _Dates]]
    max_age: int
    chained: bool = False


def signed_member(text: bytes, member: str) -> tuple[str, str]:
    """The signed text and the signature, in hexadecimal digits, of ``{"MEMBER": {...}, "signature": "..."}``.

    Intel signs the member's bytes as served: parsed and written again they might differ, so they are cut out.

    Raises:
        FormatError: it is not of that form.
    """
    try:
        ascii_text = text.decode("ascii")
        parts = _members(ascii_text)
    except (ValueError, RecursionError):
        raise FormatError("not a JSON object in ASCII") from None
    if set(parts) != {member, "signature"} or not parts[member].startswith("{"):
        raise FormatError(f"wanted a JSON object of {member} and signature")
    signature = parts["signature"].strip('"')
    if not re.fullmatch(r"[0-9a-fA-F]{128}", signature):
        raise FormatError("signature: wanted 64 bytes in hexadecimal digits")
    return parts[member], signature


def _members(text: str) -> dict[str, str]:
    """The two members of a JSON object, each as its own text. Raises ValueError for whatever else."""
    found: dict[str, str] = {}
    at = _skip(text, 0, "{")
    for closing in (",", "}"):
        name, at = _JSON.raw_decode(text, at)
        at = _skip(text, at, ":")
        start, at = at, _JSON.raw_decode(text, at)[1]
        found[str(name)] = text[start:at]
        at = _skip(text, at, closing)
    if at != len(text):
        raise ValueError
    return found


def _skip(text: str, at: int, wanted: str) -> int:
    found = re.compile(rf"[ \t\r\n]*{re.escape(wanted)}[ \t\r\n]*").match(text, at)
    if not found:
        raise ValueError
    return found.end()


_JSON = json.JSONDecoder()


def _tcb_info(body: bytes, wanted: Mapping[str, str]) -> tuple[bytes, _Dates]:
    info = _document(body, "tcbInfo")
    fmspc = info.get("fmspc")
    if not isinstance(fmspc, str) or fmspc.upper() != wanted["fmspc"]:
        raise FormatError(f"got TCB information of FMSPC {str(fmspc)[:40]!r}")
    # Version 2, of the years before TDX, has no id.
    if str(info.get("id", "SGX")).lower() != wanted["tee"]:
        raise FormatError(f"got TCB information of {str(info.get('id'))[:40]!r}")
    return body, _document_dates(info)


def _qe_identity(body: bytes, wanted: Mapping[str, str]) -> tuple[bytes, _Dates]:
    identity = _document(body, "enclaveIdentity")
    if identity.get("id") != {"sgx": "QE", "tdx": "TD_QE"}[wanted["tee"]]:
        raise FormatError(f"got the identity of {str(identity.get('id'))[:40]!r}")
    return body, _document_dates(identity)


def _document(body: bytes, member: str) -> dict[str, object]:
    text, _ = signed_member(body, member)
    try:
        document: dict[str, object] = json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError("not a JSON object in ASCII") from None
    return document


def _document_dates(document: Mapping[str, object]) -> _Dates:
    start, end = (_seconds(document.get(name), name) for name in ("issueDate", "nextUpdate"))
    return start, end


def _seconds(text: object, name: str) -> int:
    try:
        moment = dt.datetime.strptime(text if isinstance(text, str) else "", "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        raise FormatError(f"{name}: got {str(text)[:40]!r}, wanted such as 2025-01-31T12:00:00Z") from None
    return int(moment.replace(tzinfo=dt.UTC).timestamp())


def _revocation_list(body: bytes, wanted: Mapping[str, str]) -> tuple[bytes, _Dates]:
    parsed = RevocationList(_der(body))
    # Intel's are told apart by their issuers: the list of another CA says nothing about this one's certificates.
    if (
        "ca" in wanted
        and f"intel sgx {'' if wanted['ca'] == 'root' else 'pck '}{wanted['ca']} ca" not in parsed.issuer.lower()
    ):
        raise FormatError(f"got the revocation list of {parsed.issuer!r:.120}")
    start, end = parsed.valid
    if end is None:
        raise FormatError("does not say until when it holds")
    return parsed.der, (start, end)


def _chip(body: bytes, _: Mapping[str, str]) -> tuple[bytes, _Dates]:
    certificate = VendorCertificate(_der(body))
    return certificate.der, certificate.valid


def _chain(body: bytes, _: Mapping[str, str]) -> tuple[bytes, _Dates]:
    certificates = pem_certificates(body)
    starts, ends = zip(*(each.valid for each in certificates), strict=True)
    return "".join(each.pem() for each in certificates).encode(), (max(starts), min(ends))


def _der(body: bytes) -> bytes:
    try:
        if body.lstrip().startswith(b"-----BEGIN "):
            lines = body.strip().split(b"\n")
            return base64.b64decode(b"".join(line.strip() for line in lines[1:-1]), validate=True)
        if re.fullmatch(rb"\s*(?:[0-9a-fA-F]{2})+\s*", body):
            return bytes.fromhex(body.decode())
    except (binascii.Error, ValueError):
        raise FormatError("neither DER, PEM nor hexadecimal digits") from None
    return body


_TEE = r"(?P<tee>sgx|tdx)"
_PRODUCT = r"(?P<product>[A-Z][a-z]{1,30})"
_FORMS = tuple(
    (re.compile(pattern), form)
    for pattern, form in (
        (rf"intel/{_TEE}/tcb/(?P<fmspc>[0-9A-F]{{12}})(?:/early)?", _Form(_tcb_info, _DATED_MAX_AGE, chained=True)),
        (rf"intel/{_TEE}/qe(?:/early)?", _Form(_qe_identity, _DATED_MAX_AGE, chained=True)),
        (r"intel/crl/(?P<ca>processor|platform)", _Form(_revocation_list, _DATED_MAX_AGE, chained=True)),
        (r"intel/crl/(?P<ca>root)", _Form(_revocation_list, _DATED_MAX_AGE)),
        (
            rf"amd/{_PRODUCT}/vcek/(?:[0-9a-f]{{128}}|[0-9a-f]{{16}})/[0-9]{{1,3}}(?:-[0-9]{{1,3}}){{3,4}}",
            _Form(_chip, _CERTIFICATE_MAX_AGE),
        ),
        (rf"amd/{_PRODUCT}/v[cl]ek/chain", _Form(_chain, _CERTIFICATE_MAX_AGE)),
        (rf"amd/{_PRODUCT}/v[cl]ek/crl", _Form(_revocation_list, _DATED_MAX_AGE)),
        (r"nvidia/crl/[a-z0-9-]{1,64}", _Form(_revocation_list, _DATED_MAX_AGE)),
    )
)


def _form(name: str) -> tuple[_Form, Mapping[str, str]]:
    for pattern, form in _FORMS:
        if found := pattern.fullmatch(name):
            return form, found.groupdict()
    raise FormatError(f"endorsement: no such name: {name[:200]!r}")
