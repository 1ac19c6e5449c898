"""A TEE vendor in software, for development and tests. **A simulated enclave protects nothing against the machine's
owner**: the vendor's root key is a file, and whoever reads it can sign any claim.

What it does give is the real thing in every other respect: quotes in TDX's format, a certificate chain, TCB
information and revocation lists, so that one verifier serves simulation and hardware alike.

Invariants:

- The root never changes once it exists: policies name its digest. All else under it is replaced before it expires.
- Each file is written whole under another name and then linked or renamed into place, so that processes which open the
  same directory at once agree on one root, and each of them holds a chain that is consistent.
- The keys of the intermediate authority, the platform and the TCB signer live only while the chain is made.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from strongroom.attest.binding import REPORT_DATA_SIZE
from strongroom.attest.claims import REGISTER_SIZE, REGISTERS
from strongroom.attest.evidence import Evidence
from strongroom.attest.tee import dcap
from strongroom.crypto import SigningKey, digest, random_bytes
from strongroom.crypto.vendor import Issuer, Validity, pem_chain
from strongroom.crypto.x509 import Certificate
from strongroom.errors import FormatError, UsageError, VerificationError

BANNER = "simulated enclave: it protects nothing against the owner of this machine"

_ROOT = "Strongroom Simulated Root CA"
_PLATFORM_CA = "Strongroom Simulated PCK Platform CA"
_TCB_SIGNER = "Strongroom Simulated TCB Signing"
_PCK = "Strongroom Simulated PCK Certificate"

# RFC 5280, section 4.1.2.5: no well-defined expiration. A policy that names the root must not run out by itself.
_ALWAYS = Validity(0, 253402300799)
_DAY = 24 * 3600
_BACKDATED = _DAY
_LIFETIME = 90 * _DAY
# Renewed on opening while this much is left, so that a process may run that long without opening again.
_RENEW_BEFORE = 30 * _DAY
_VERSION = 1


@dataclass(frozen=True)
class _Chain:
    """What the vendor signed, and the attestation key that it vouches for."""

    root_digest: str
    valid: Validity
    ppid: bytes
    key: SigningKey = field(repr=False)
    certification: bytes = field(repr=False)
    endorsements: bytes = field(repr=False)

    def covers(self, now: int) -> bool:
        return self.valid.start <= now <= self.valid.end - _RENEW_BEFORE

    def to_json(self) -> bytes:
        return json.dumps(
            {
                "version": _VERSION,
                "root": self.root_digest,
                "start": self.valid.start,
                "end": self.valid.end,
                "ppid": self.ppid.hex(),
                "key": self.key.pem().decode(),
                "certification": self.certification.hex(),
                "endorsements": self.endorsements.decode(),
            }
        ).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> _Chain:
        state = json.loads(raw)
        if state["version"] != _VERSION:
            raise FormatError(f"simulated vendor: got version {state['version']}, wanted {_VERSION}")
        return cls(
            root_digest=state["root"],
            valid=Validity(int(state["start"]), int(state["end"])),
            ppid=bytes.fromhex(state["ppid"]),
            key=SigningKey.from_pem(state["key"].encode()),
            certification=bytes.fromhex(state["certification"]),
            endorsements=state["endorsements"].encode(),
        )


class SimulatedVendor:
    """Signs quotes for whatever registers it is told. Open one with `open`.

    `root_digest` is what a policy's `allow_simulated` must name.
    """

    def __init__(self, chain: _Chain) -> None:
        self._chain = chain
        self.root_digest = chain.root_digest

    @classmethod
    def open(cls, directory: Path, *, now: int) -> SimulatedVendor:
        """The vendor that lives in `directory`, made there on first use (files of mode 0600).

        Its quotes verify from a day before `now` until at least 30 days after.

        Raises:
            FormatError: the root file there is not one of ours.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        root, certificate = _open_root(directory / "root.pem")
        root_digest = "sha256:" + digest(certificate).hex()
        path = directory / "chain.json"
        chain = _read_chain(path)
        if chain is None or chain.root_digest != root_digest or not chain.covers(now):
            chain = _make_chain(root, certificate, root_digest, now, chain.ppid if chain else random_bytes(16))
            _replace(path, chain.to_json())
        return cls(chain)

    def quote(self, registers: Mapping[str, bytes], report_data: bytes, *, debug: bool = False) -> Evidence:
        """Evidence that an enclave with these registers (`evidence.REGISTERS`, 48 bytes each) made over `report_data`.

        Raises:
            UsageError: registers or report data are not of that form.
        """
        if set(registers) != set(REGISTERS) or any(len(value) != REGISTER_SIZE for value in registers.values()):
            raise UsageError(f"registers: wanted exactly {', '.join(REGISTERS)}, {REGISTER_SIZE} bytes each")
        if len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(f"report data: {len(report_data)} bytes, wanted {REPORT_DATA_SIZE}")
        chain = self._chain
        body = dcap.td_quote_body(registers, report_data, debug=debug)
        quote = dcap.td_quote(body, chain.key.sign(body), chain.key.public.point, chain.certification)
        return Evidence("simulated", quote, chain.endorsements)

    def __repr__(self) -> str:
        return f"SimulatedVendor({self.root_digest}, <private>)"


@dataclass(frozen=True)
class SimulatedAttester:
    """An attester for an enclave whose registers the launcher computed."""

    vendor: SimulatedVendor
    registers: Mapping[str, bytes]
    tee: str = field(default="simulated", init=False)

    def evidence(self, report_data: bytes) -> Evidence:
        return self.vendor.quote(self.registers, report_data)


def _make_chain(root: Issuer, root_der: bytes, root_digest: str, now: int, ppid: bytes) -> _Chain:
    valid = Validity(max(now - _BACKDATED, 0), now + _LIFETIME)
    platform = Issuer(_PLATFORM_CA, SigningKey.generate())
    platform_der = root.certificate(platform.name, platform.key.public, valid, ca=True)
    pck = SigningKey.generate()
    extension = {dcap.SGX_EXTENSION: dcap.pck_extension(ppid, digest(ppid)[:16])}
    pck_der = platform.certificate(_PCK, pck.public, valid, ca=False, extensions=extension)
    tcb = SigningKey.generate()
    tcb_chain = pem_chain(root.certificate(_TCB_SIGNER, tcb.public, valid, ca=False), root_der)
    tcb_info, qe_identity = dcap.tcb_info(valid.start, valid.end), dcap.qe_identity(valid.start, valid.end)
    endorsements = {
        "root_ca_crl": root.revocation_list(valid).hex(),
        "pck_crl": platform.revocation_list(valid).hex(),
        "pck_crl_issuer_chain": pem_chain(platform_der, root_der),
        "tcb_info_issuer_chain": tcb_chain,
        "tcb_info": tcb_info,
        "tcb_info_signature": tcb.sign(tcb_info.encode()).hex(),
        "qe_identity_issuer_chain": tcb_chain,
        "qe_identity": qe_identity,
        "qe_identity_signature": tcb.sign(qe_identity.encode()).hex(),
    }
    key, authentication = SigningKey.generate(), random_bytes(32)
    report = dcap.qe_report(key.public.point, authentication)
    certificates = pem_chain(pck_der, platform_der, root_der).encode()
    return _Chain(
        root_digest=root_digest,
        valid=valid,
        ppid=ppid,
        key=key,
        certification=dcap.certification(report, pck.sign(report), authentication, certificates),
        endorsements=json.dumps(endorsements, separators=(",", ":")).encode(),
    )


def _open_root(path: Path) -> tuple[Issuer, bytes]:
    if not path.exists():
        key = SigningKey.generate()
        certificate = Issuer(_ROOT, key).certificate(_ROOT, key.public, _ALWAYS, ca=True)
        _create(path, key.pem() + pem_chain(certificate).encode())
    pem = path.read_bytes()
    try:
        key, root = SigningKey.from_pem(pem), Certificate.from_pem(pem)
        if key.public != root.key:
            raise VerificationError("the certificate is not the key's")
    except (FormatError, VerificationError) as error:
        raise FormatError(
            f"{path}: {error.message}", hint="move it away to make a new root, which no policy names yet"
        ) from None
    return Issuer(_ROOT, key), root.der


def _read_chain(path: Path) -> _Chain | None:
    """The chain in that file; None if there is none, or one that cannot be read: it is made anew then."""
    try:
        return _Chain.from_json(path.read_bytes())
    except (FileNotFoundError, FormatError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _create(path: Path, content: bytes) -> None:
    """Make that file with that content, unless somebody else made it first."""
    temporary = _temporary(path, content)
    try:
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()


def _replace(path: Path, content: bytes) -> None:
    _temporary(path, content).replace(path)


def _temporary(path: Path, content: bytes) -> Path:
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)  # a root that policies name must not be an empty file after a crash
    return Path(name)
