"""Parse Intel's endorsements: TCB information, the identity of a quoting enclave, and what signs them.

Nothing is trusted. The JSON form of the whole is that of `dcap-qvl` (docs/spec/evidence.md). The two documents in it
are those of "Intel SGX and Intel TDX services API", version 4: TCB information (version 3 of the document) and enclave
identity (version 2). Members that are not read here are left alone, since Intel adds some; what is read must be there
once, in its form.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from strongroom.attest.evidence import MAX_ENDORSEMENTS
from strongroom.crypto.chains import pem_certificates
from strongroom.errors import FormatError

_COMPONENTS = 16
_MAX_LEVELS = 256
_MAX_WORD = 40


@dataclass(frozen=True)
class Collateral:
    """Intel's endorsements of one platform, as they came; the names are those of the JSON form."""

    pck_crl_issuer_chain: str
    tcb_info_issuer_chain: str
    tcb_info: str
    qe_identity_issuer_chain: str
    qe_identity: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_signature: bytes
    qe_identity_signature: bytes


@dataclass(frozen=True)
class Level:
    """A platform, a TDX module or a quoting enclave with at least these versions has this status."""

    status: str
    advisories: tuple[str, ...]
    isvsvn: int = 0
    pcesvn: int = 0
    sgx: tuple[int, ...] = ()
    tdx: tuple[int, ...] = ()


@dataclass(frozen=True)
class Identity:
    """An enclave or a TDX module that Intel built: `attributes` under `mask`, `signer`, and its levels, best first."""

    signer: bytes
    attributes: bytes
    mask: bytes
    levels: tuple[Level, ...] = ()
    product: int = 0
    misc: bytes = b""
    misc_mask: bytes = b""


@dataclass(frozen=True)
class Window:
    """From when until when a document holds, seconds since 1970, and its TCB evaluation data number."""

    start: int
    end: int
    evaluation: int


@dataclass(frozen=True)
class TcbInfo:
    """TCB information: `kind` is ``SGX`` or ``TDX``; `module` is of modules of version 0, `modules` of others by id."""

    kind: str
    window: Window
    fmspc: bytes
    pce_id: bytes
    levels: tuple[Level, ...]
    module: Identity | None
    modules: Mapping[str, Identity]


@dataclass(frozen=True)
class QeIdentity:
    """The identity of a quoting enclave: `kind` is ``QE`` or ``TD_QE``."""

    kind: str
    window: Window
    identity: Identity


@lru_cache(maxsize=8)
def parse_collateral(endorsements: bytes) -> Collateral:
    """Read the JSON form. Raises FormatError if it is none."""
    if len(endorsements) > MAX_ENDORSEMENTS:
        raise FormatError(f"endorsements: {len(endorsements)} bytes, wanted at most {MAX_ENDORSEMENTS}")
    members = _Members("endorsements", _object("endorsements", endorsements))
    return Collateral(
        pck_crl_issuer_chain=members.chain("pck_crl_issuer_chain"),
        tcb_info_issuer_chain=members.chain("tcb_info_issuer_chain"),
        tcb_info=members.text("tcb_info"),
        qe_identity_issuer_chain=members.chain("qe_identity_issuer_chain"),
        qe_identity=members.text("qe_identity"),
        root_ca_crl=members.octets("root_ca_crl"),
        pck_crl=members.octets("pck_crl"),
        tcb_info_signature=members.octets("tcb_info_signature"),
        qe_identity_signature=members.octets("qe_identity_signature"),
    )


@lru_cache(maxsize=16)
def parse_tcb_info(text: str) -> TcbInfo:
    """Read TCB information, version 3. Raises FormatError if it is none."""
    members = _Members("TCB information", _object("TCB information", text))
    if members.number("version") != 3:
        raise FormatError(f"TCB information: got version {members.number('version')}, wanted 3")
    kind = members.text("id")
    if kind not in ("SGX", "TDX"):
        raise FormatError(f"TCB information: got id {kind[:20]!r}, wanted SGX or TDX")
    modules = {each.text("id"): _module(each) for each in members.list("tdxModuleIdentities", optional=True)}
    return TcbInfo(
        kind=kind,
        window=_window(members),
        fmspc=members.octets("fmspc", 6),
        pce_id=members.octets("pceId", 2),
        levels=tuple(_platform_level(each, kind) for each in members.list("tcbLevels")),
        module=_module(members.member("tdxModule")) if "tdxModule" in members else None,
        modules=modules,
    )


@lru_cache(maxsize=16)
def parse_qe_identity(text: str) -> QeIdentity:
    """Read the identity of a quoting enclave, version 2. Raises FormatError if it is none."""
    members = _Members("QE identity", _object("QE identity", text))
    if members.number("version") != 2:
        raise FormatError(f"QE identity: got version {members.number('version')}, wanted 2")
    identity = Identity(
        signer=members.octets("mrsigner", 32),
        attributes=members.octets("attributes", 16),
        mask=members.octets("attributesMask", 16),
        levels=tuple(_enclave_level(each) for each in members.list("tcbLevels")),
        product=members.number("isvprodid"),
        misc=members.octets("miscselect", 4),
        misc_mask=members.octets("miscselectMask", 4),
    )
    return QeIdentity(members.text("id"), _window(members), identity)


class _Members:
    """A JSON object whose members are of the types asked for; `name` is what errors call it."""

    def __init__(self, name: str, members: Mapping[str, Any]) -> None:
        self._name, self._members = name, members

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def text(self, name: str) -> str:
        value = self._members.get(name)
        # Intel's are ASCII; what JSON can spell and UTF-8 cannot, a lone surrogate, goes no further.
        return value if isinstance(value, str) and value.isascii() else self._refuse(name, "a string in ASCII")

    def word(self, name: str) -> str:
        value = self.text(name)
        return value if _is_word(value) else str(self._refuse(name, "a word"))

    def chain(self, name: str) -> str:
        text = self.text(name)
        try:
            pem_certificates(text.encode())
        except FormatError as error:
            raise FormatError(f"{self._name}: {name}: {error.message}") from None
        return text

    def number(self, name: str) -> int:
        value = self._members.get(name)
        return value if type(value) is int and 0 <= value < 2**32 else self._refuse(name, "a number")

    def octets(self, name: str, size: int | None = None) -> bytes:
        text = self.text(name)
        try:
            raw = bytes.fromhex(text)
        except ValueError:
            raw = b""
        if len(raw) * 2 != len(text) or not raw or size not in (None, len(raw)):
            self._refuse(name, f"hexadecimal digits of {size or 'some'} bytes")
        return raw

    def time(self, name: str) -> int:
        try:
            moment = dt.datetime.strptime(self.text(name), "%Y-%m-%dT%H:%M:%SZ")
        except ValueError:
            self._refuse(name, "a time such as 2025-01-31T12:00:00Z")
        return int(moment.replace(tzinfo=dt.UTC).timestamp())

    def member(self, name: str) -> _Members:
        value = self._members.get(name)
        return _Members(f"{self._name}: {name}", value if isinstance(value, dict) else self._refuse(name, "an object"))

    def list(self, name: str, *, optional: bool = False) -> list[_Members]:
        values = self._members.get(name, [] if optional else None)
        if not isinstance(values, list) or len(values) > _MAX_LEVELS:
            self._refuse(name, f"a list of at most {_MAX_LEVELS}")
        if not all(isinstance(each, dict) for each in values):
            self._refuse(name, "a list of objects")
        return [_Members(f"{self._name}: {name}", each) for each in values]

    def texts(self, name: str) -> tuple[str, ...]:
        values = self._members.get(name, [])
        if not isinstance(values, list) or not all(isinstance(each, str) and _is_word(each) for each in values):
            self._refuse(name, "a list of words")
        return tuple(values)

    def _refuse(self, name: str, wanted: str) -> Any:
        raise FormatError(f"{self._name}: {name}: wanted {wanted}")


def _is_word(text: str) -> bool:
    """Whether it can be shown as it is."""
    return len(text) <= _MAX_WORD and text.isascii() and text.isprintable()


def _object(name: str, raw: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(raw if isinstance(raw, str) else raw.decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise FormatError(f"{name}: not JSON, or a name is there twice") from None
    if not isinstance(value, dict):
        raise FormatError(f"{name}: got a {type(value).__name__}, wanted an object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _window(members: _Members) -> Window:
    return Window(members.time("issueDate"), members.time("nextUpdate"), members.number("tcbEvaluationDataNumber"))


def _module(members: _Members) -> Identity:
    return Identity(
        signer=members.octets("mrsigner", 48),
        attributes=members.octets("attributes", 8),
        mask=members.octets("attributesMask", 8),
        levels=tuple(_enclave_level(each) for each in members.list("tcbLevels", optional=True)),
    )


def _enclave_level(members: _Members) -> Level:
    isvsvn = members.member("tcb").number("isvsvn")
    return Level(members.word("tcbStatus"), members.texts("advisoryIDs"), isvsvn=isvsvn)


def _platform_level(members: _Members, kind: str) -> Level:
    tcb = members.member("tcb")
    return Level(
        members.word("tcbStatus"),
        members.texts("advisoryIDs"),
        pcesvn=tcb.number("pcesvn"),
        sgx=_components(tcb, "sgxtcbcomponents"),
        tdx=_components(tcb, "tdxtcbcomponents") if kind == "TDX" else (),
    )


def _components(tcb: _Members, name: str) -> tuple[int, ...]:
    components = tuple(each.number("svn") for each in tcb.list(name))
    if len(components) != _COMPONENTS:
        raise FormatError(f"TCB information: {len(components)} {name}, wanted {_COMPONENTS}")
    return components
