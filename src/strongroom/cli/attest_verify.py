"""`strongroom attest verify`: who vouches for evidence, and for what."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from strongroom.attest.claims import Claims
from strongroom.attest.evidence import Evidence
from strongroom.attest.explain.fields import moment
from strongroom.attest.verify import steps_of, verify
from strongroom.cli import attest_reading as reading
from strongroom.cli import output
from strongroom.cli.attest_endorsements import add_services, complete
from strongroom.cli.attest_words import heading, table
from strongroom.errors import (
    DebugEnclaveError,
    ExpiredError,
    FormatError,
    StrongroomError,
    VerificationError,
)

# What a refusal means for who reads it, by class.
_MEANING: dict[type[StrongroomError], str] = {
    FormatError: "these bytes are not what they look like, or lack what verifying needs: nothing was verified",
    ExpiredError: "out of its time at that moment: fetch fresh endorsements, or verify --at the time of the evidence",
    DebugEnclaveError: "the enclave may be genuine, but whoever runs it can read its memory",
    VerificationError: "no vendor that is trusted here vouches for it as it is: rely on nothing that it says",
}

# What evidence of a kind never carries itself, or only where somebody put it in; and how to get it.
_COLLATERAL = ("Intel's collateral", "give it with --endorsements FILE, or have it fetched with --fetch")
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
    claims = verified(args, evidence, now)
    held = steps_of(evidence.tee)
    if args.json:
        output.result({"verified": True, "form": found.form, "at": now, "steps": held, "claims": claims_wire(claims)})
        return 0
    output.stdout.print(f"{evidence.tee} evidence: {found.form}", markup=False, soft_wrap=True)
    show_held(held, now)
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


def verified(args: argparse.Namespace, evidence: Evidence, now: int) -> Claims:
    """The claims; a refusal gets a line that says what it means."""
    if evidence.tee == "simulated":
        output.warn(output.SIMULATED_BANNER)
    completed = complete(evidence, args, now)
    try:
        return verify(completed, now=now, anchors=reading.anchors(args, evidence.tee))
    except StrongroomError as error:
        if isinstance(error, FormatError) and not completed.endorsements and evidence.tee in _NEEDED:
            wanted, how = _NEEDED[evidence.tee]
            raise FormatError(f"endorsements: none, wanted {wanted}", hint=how) from None
        meaning = next((text for kind, text in _MEANING.items() if isinstance(error, kind)), None)
        if meaning and error.hint is None:
            error.hint = meaning
        elif meaning and not args.json:
            output.note(f"refused: {meaning}")
        raise


def show_held(held: Sequence[str], now: int) -> None:
    heading("held", f"every step, at {moment(now)}")
    table([(f"{number}.", step) for number, step in enumerate(held, 1)])


def show_claims(claims: Claims, title: str = "claims") -> None:
    """Every claim, those of devices too."""
    heading(title, "what the vendor vouches for")
    rows = [
        ("measurement", claims.measurement),
        ("signer", claims.signer or "none"),
        ("report data", claims.report_data.hex() or "none"),
        ("debug", "ON: its memory can be read" if claims.debug else "off"),
        ("migratable", "YES" if claims.migratable else "no"),
        ("weaknesses", ", ".join(claims.weaknesses) or "none"),
        ("tcb status", claims.tcb_status or "no word of the vendor's"),
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
        table([(name, _word(value)) for name, value in claims.attributes.items()])
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
        "tcb_status": claims.tcb_status,
        "advisories": list(claims.advisories),
        "tcb": dict(claims.tcb),
        "product": claims.product,
        "hardware_id": claims.hardware_id,
        "issued_at": claims.issued_at,
        "vendor_root": claims.vendor_root,
        "attributes": dict(claims.attributes),
        "devices": [claims_wire(device) for device in claims.devices],
    }


def _word(value: str | int | bool) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)
