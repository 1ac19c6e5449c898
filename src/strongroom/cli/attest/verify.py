"""`strongroom attest verify`: who vouches for evidence, and for what."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.fields import moment
from strongroom.attest.explain.intel import collateral
from strongroom.attest.parse.endorsements import parse_endorsements
from strongroom.attest.verify import verify
from strongroom.attest.verify.account import Held, held
from strongroom.cli import output
from strongroom.cli.attest import reading as reading
from strongroom.cli.attest.endorsements import add_services, complete
from strongroom.cli.attest.words import heading, table
from strongroom.errors import (
    DebugEnclaveError,
    ExpiredError,
    FormatError,
    StrongroomError,
    VerificationError,
)

_APPRAISE = "whether you want what runs there, and for whom and when this was made: `appraise` compares"

# In the words of claims: what is a time, and what may be digits of any length.
_MOMENTS = ("_expire", "_expires")
_DIGITS = re.compile(r"(?:[0-9a-f]{2})*")
_MAX_BYTES = 64

# What a refusal means for who reads it, by class.
_MEANING: dict[type[StrongroomError], str] = {
    FormatError: "these bytes are not what they look like, or lack what verifying needs: nothing was verified",
    ExpiredError: "out of its time at that moment",
    DebugEnclaveError: "the enclave may be genuine, but whoever runs it can read its memory",
    VerificationError: "no vendor that is trusted here vouches for it as it is: rely on nothing that it says",
}

# What evidence of a kind never carries itself, or only where somebody put it in; and how to get it.
_COLLATERAL = ("Intel's collateral", "give it with --endorsements FILE, or have it fetched with --fetch")
_FRESH = "--fetch gets endorsements that are in force"
# How to get what is in force, by kind; looking back is always possible.
_RENEWED = {
    "sgx": _FRESH,
    "tdx": _FRESH,
    "azure-tdx": _FRESH,
    "snp": _FRESH,
    "azure-snp": _FRESH,
    "nitro": "a Nitro document holds for three hours, and only the enclave can make another",
    "nvidia": "the device hands out its certificates anew",
    "tpm": "whoever certified the TPM's key has to certify it anew",
    "simulated": "make the evidence anew",
}
_NEEDED = {
    "sgx": _COLLATERAL,
    "tdx": _COLLATERAL,
    "nvidia": ("the device's certificate chain", "give it with --endorsements FILE: it comes from the device"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    reading.add_evidence(parser)
    reading.add_trust(parser)
    add_sources(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    found, now = reading.read(args), reading.now(args)
    evidence = found.evidence
    account, claims = verified(args, evidence, now)
    unchecked = (*account.not_checked, _APPRAISE)
    if args.json:
        told = {"verified": True, "form": found.form, "at": now, "steps": account.steps, "not_checked": unchecked}
        output.result(told | {"claims": claims_wire(claims)})
        return 0
    output.stdout.print(f"{evidence.tee} evidence: {found.form}", markup=False, soft_wrap=True)
    heading("held", f"every step that this evidence allows, at {moment(now)}")
    table([(f"{number}.", step) for number, step in enumerate(account.steps, 1)])
    show_unchecked(unchecked)
    show_claims(claims)
    output.note(
        "verified, not appraised: authentic claims are not yet wanted ones; `strongroom attest appraise` compares"
    )
    return 0


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Where endorsements come from that are not in the evidence or in files of their own."""
    add_services(parser)
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE", help="take endorsements from what `endorsements bundle` wrote"
    )
    parser.add_argument("--fetch", action="store_true", help="fetch endorsements from the vendors, through the cache")


def verified(
    args: argparse.Namespace, evidence: Evidence, now: int, *, named: frozenset[str] = frozenset()
) -> tuple[Held, Claims]:
    """What held, and the claims; a refusal gets a line that says what it means.

    Args:
        named: digests of what may vouch too (`Anchors.named`).
    """
    if evidence.tee == "simulated":
        output.warn(output.SIMULATED_BANNER)
    completed, trusted = complete(evidence, args, now), reading.anchors(args, evidence.tee, named)
    try:
        claims = verify(completed, now=now, anchors=trusted)
    except StrongroomError as error:
        if isinstance(error, FormatError) and not completed.endorsements and evidence.tee in _NEEDED:
            wanted, how = _NEEDED[evidence.tee]
            raise FormatError(f"endorsements: none, wanted {wanted}", hint=how) from None
        meaning = next((text for kind, text in _MEANING.items() if isinstance(error, kind)), None)
        if meaning and not args.json:
            output.note(f"refused: {meaning}")
        if error.hint is None and isinstance(error, ExpiredError):
            error.hint = f"{_renewed(completed)}; --at verifies as of another time"
        raise
    return held(completed, claims), claims


def _renewed(evidence: Evidence) -> str:
    """Where something in force comes from. A provider's key (VLEK) is nothing that AMD's service hands out."""
    how = _RENEWED[evidence.tee]
    if evidence.tee in ("sgx", "tdx", "azure-tdx") and evidence.endorsements:
        told = {field.name: str(field.value) for field in collateral(evidence.endorsements).fields}
        return f"the TCB information given holds from {told.get('TCB information', 'no time that it tells')}; {how}"
    leaves = parse_endorsements(evidence.endorsements).certificates if evidence.tee in ("snp", "azure-snp") else ()
    return "the host hands out the VLEK's certificate anew" if any("VLEK" in each.subject for each in leaves) else how


def show_unchecked(unchecked: Sequence[str]) -> None:
    """What nobody has looked at; nothing if there is no such thing."""
    if unchecked:
        heading("not checked")
        table([(each,) for each in unchecked], styles=["yellow"] * len(unchecked))


def show_claims(claims: Claims, title: str = "claims") -> None:
    """Every claim, those of devices too."""
    heading(title, "what the vendor vouches for")
    rows = [
        ("measurement", claims.measurement),
        *([("program", f"{claims.program}, says the launcher there")] if claims.program else []),
        *([("programs", " ".join(dict.fromkeys(claims.programs)) or "none")] if claims.programs is not None else []),
        ("signer", claims.signer or "none"),
        ("report data", cut(claims.report_data.hex()) or "none"),
        ("debug", "ON: its memory can be read" if claims.debug else "off"),
        ("migratable", "YES" if claims.migratable else "no"),
        ("weaknesses", ", ".join(claims.weaknesses) or "none"),
        ("tcb status", claims.tcb_status or _no_status(claims.tee)),
        ("revocation", claims.revocation),
        ("advisories", ", ".join(claims.advisories) or "none"),
        ("tcb", ", ".join(f"{name} {version}" for name, version in claims.tcb.items()) or "none"),
        ("product", claims.product or "not told"),
        ("hardware id", claims.hardware_id or "not told"),
        ("made at", "not told" if claims.issued_at is None else moment(claims.issued_at)),
        ("vendor root", claims.vendor_root),
    ]
    table(rows)
    if claims.registers:
        heading("registers" if title == "claims" else f"{title}: registers")
        table(list(claims.registers.items()))
    if claims.attributes:
        heading("attributes" if title == "claims" else f"{title}: attributes")
        table([(name, _word(name, value)) for name, value in claims.attributes.items()])
    for index, device in enumerate(claims.devices):
        show_claims(device, f"device {index}")


def claims_wire(claims: Claims) -> dict[str, object]:
    """Claims as a JSON object."""
    return {
        "tee": claims.tee,
        "measurement": claims.measurement,
        "signer": claims.signer,
        "registers": dict(claims.registers),
        "report_data": claims.report_data.hex(),
        "debug": claims.debug,
        "migratable": claims.migratable,
        "weaknesses": list(claims.weaknesses),
        "revocation": claims.revocation,
        "tcb_status": claims.tcb_status,
        "advisories": list(claims.advisories),
        "tcb": dict(claims.tcb),
        "product": claims.product,
        "hardware_id": claims.hardware_id,
        "issued_at": claims.issued_at,
        "vendor_root": claims.vendor_root,
        "attributes": dict(claims.attributes),
        "devices": [claims_wire(device) for device in claims.devices],
        **({"program": claims.program} if claims.program else {}),
        **({} if claims.programs is None else {"programs": list(claims.programs)}),
    }


def cut(digits: str) -> str:
    """Hexadecimal digits, shortened where no field of fixed size is so long; --json has all."""
    size = len(digits) // 2
    return digits if size <= _MAX_BYTES else f"{digits[: 2 * _MAX_BYTES]}... ({size:,} bytes)"


def _no_status(tee: str) -> str:
    return "not checked: Intel's collateral is not there" if tee == "azure-tdx" else "the vendor has no word for it"


def _word(name: str, value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith(_MOMENTS):
        return moment(value)
    if isinstance(value, int) and name == "clock":  # milliseconds (TPM 2.0 part 2, section 10.11.1)
        return f"{value / 1000:,.1f} s that the TPM has been on"
    return cut(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else str(value)
