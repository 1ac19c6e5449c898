"""What Intel's provisioning certification service (PCS), version 4, says about a platform, for DCAP quotes.

"Intel SGX and Intel TDX Provisioning Certification Service API", version 4: ``GET /{sgx,tdx}/certification/v4/tcb``,
``/{sgx,tdx}/certification/v4/qe/identity``, ``/sgx/certification/v4/pckcrl``. No key is asked for. The signer's chain
comes in a header, percent-encoded. A caching service (PCCS) answers the same, and ``/sgx/certification/v4/rootcacrl``
besides, in hexadecimal digits; at Intel that list lies where the root certificate says (its CRL distribution point).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from strongroom.attest.endorsements.endorsement import Endorsement, Want, signed_member
from strongroom.attest.evidence import MAX_ENDORSEMENTS
from strongroom.attest.parse.dcap import parse_quote
from strongroom.attest.parse.dcap_body import TdReport
from strongroom.attest.parse.pck import parse_platform
from strongroom.errors import FormatError, UsageError

PCS = "https://api.trustedservices.intel.com"
ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"

# The older name is that of version 3, which some caching services still send.
TCB_CHAIN = ("tcb-info-issuer-chain", "sgx-tcb-info-issuer-chain")
QE_CHAIN = ("sgx-enclave-identity-issuer-chain",)
CRL_CHAIN = ("sgx-pck-crl-issuer-chain",)

_ISSUER = re.compile(r"Intel SGX PCK (Platform|Processor) CA")

Tee = Literal["sgx", "tdx"]
Ca = Literal["platform", "processor"]


@dataclass(frozen=True)
class Platform:
    """What Intel's endorsements of a platform depend on.

    Attributes:
        fmspc: its kind, 12 upper-case hexadecimal digits.
        ca: which CA issued its certificate.
        tee: what runs on it.
    """

    fmspc: str
    ca: Ca
    tee: Tee

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9A-F]{12}", self.fmspc):
            raise UsageError(f"FMSPC: got {self.fmspc[:40]!r}, wanted 12 hexadecimal digits in upper case")
        if self.ca not in ("platform", "processor") or self.tee not in ("sgx", "tdx"):
            raise UsageError(
                f"platform: got CA {self.ca!r} and TEE {self.tee!r}, wanted platform or processor, sgx or tdx"
            )

    @classmethod
    def of_quote(cls, quote: bytes) -> Self:
        """The platform whose certificate a DCAP quote carries.

        Raises:
            FormatError: it carries none, or one that is not Intel's.
        """
        parsed = parse_quote(quote)
        leaf = parsed.certificates[0]
        issuer = _ISSUER.search(leaf.issuer)
        if not issuer:
            raise FormatError(
                f"quote: got a certificate of a platform by {leaf.issuer!r:.120}, wanted by Intel's PCK CAs"
            )
        return cls(
            parse_platform(leaf).fmspc.hex().upper(),
            "platform" if issuer[1] == "Platform" else "processor",
            "tdx" if isinstance(parsed.report, TdReport) else "sgx",
        )


def base_url(service: str) -> str:
    """The URL that paths of that service start at."""
    return re.sub(r"/(?:(?:sgx|tdx)/certification/v4/?)?$", "", service)


def wants(platform: Platform, *, service: str = PCS, root_crl: str = ROOT_CRL, early: bool = False) -> tuple[Want, ...]:
    """TCB information, identity of the quoting enclave, and the two revocation lists, in that order.

    Args:
        service: PCS, or a PCCS; with or without ``/sgx/certification/v4`` after the host.
        root_crl: where the root's revocation list is.
        early: ask for what Intel publishes ahead of the end of a TCB recovery: the platform may not be ready for it.
    """
    base = base_url(service)
    tee, fmspc, ca = platform.tee, platform.fmspc, platform.ca
    update, mark = ("early", "/early") if early else ("standard", "")
    return (
        Want(
            f"intel/{tee}/tcb/{fmspc}{mark}",
            f"{base}/{tee}/certification/v4/tcb?fmspc={fmspc}&update={update}",
            TCB_CHAIN,
        ),
        Want(f"intel/{tee}/qe{mark}", f"{base}/{tee}/certification/v4/qe/identity?update={update}", QE_CHAIN),
        Want(f"intel/crl/{ca}", f"{base}/sgx/certification/v4/pckcrl?ca={ca}&encoding=der", CRL_CHAIN),
        Want("intel/crl/root", root_crl),
    )


def compose(endorsements: Sequence[Endorsement]) -> bytes:
    """The endorsements of `wants`, in its order, as evidence carries them (docs/spec/evidence.md).

    Raises:
        FormatError: they are too large.
    """
    tcb, identity, crl, root_crl = endorsements
    tcb_info, tcb_signature = signed_member(tcb.body, "tcbInfo")
    qe_identity, qe_signature = signed_member(identity.body, "enclaveIdentity")
    whole = json.dumps(
        {
            "pck_crl_issuer_chain": crl.chain,
            "root_ca_crl": root_crl.body.hex(),
            "pck_crl": crl.body.hex(),
            "tcb_info_issuer_chain": tcb.chain,
            "tcb_info": tcb_info,
            "tcb_info_signature": tcb_signature,
            "qe_identity_issuer_chain": identity.chain,
            "qe_identity": qe_identity,
            "qe_identity_signature": qe_signature,
        },
        separators=(",", ":"),
    ).encode()
    if len(whole) > MAX_ENDORSEMENTS:
        raise FormatError(f"endorsements: {len(whole)} bytes, wanted at most {MAX_ENDORSEMENTS}")
    return whole
