"""`strongroom attest appraise`: does a policy want what the vendor vouches for? Each comparison, those after a failure
too."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from strongroom.attest.appraise import Step, steps
from strongroom.attest.binding import REPORT_DATA_SIZE, bound_data
from strongroom.attest.claims import Claims
from strongroom.attest.reference import ReferenceValues
from strongroom.cas.document import MAX_DOCUMENT, parse_toml
from strongroom.cas.policy import parse_policy, parse_reference
from strongroom.cli import attest_draft, output
from strongroom.cli import attest_reading as reading
from strongroom.cli.attest_verify import add_sources, claims_wire, verified
from strongroom.cli.attest_words import heading, table
from strongroom.errors import PolicyError, UsageError

# Evidence whose report data has 64 bytes, and is padded with zeros where less was put in.
_PADDED = ("sgx", "tdx", "snp", "simulated")

# Characters of a value in the table; errors and --json have them all.
_MAX_SHOWN = 48


def configure(parser: argparse.ArgumentParser) -> None:
    reading.add_evidence(parser)
    reading.add_trust(parser)
    add_sources(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--policy", type=Path, metavar="FILE", help="a policy, or a file with its table [reference] only")
    what.add_argument(
        "--draft-policy", action="store_true", help="print a table [reference] that accepts just this evidence"
    )
    bound = parser.add_mutually_exclusive_group()
    bound.add_argument(
        "--report-data",
        metavar="HEX",
        help="the 64 bytes it was asked for (docs/spec/evidence.md); TPMs carry their digest",
    )
    bound.add_argument(
        "--nonce", metavar="TEXT", help="what it was asked for, as the evidence holds it: text, or hex: and digits"
    )
    bound.add_argument(
        "--any-report-data",
        action="store_true",
        help="compare it with nothing: then anybody's copy of this evidence is as good as the original",
    )
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    expected = _expected(args)
    reference = None if args.draft_policy else read_reference(args.policy)
    found, now = reading.read(args), reading.now(args)
    claims = verified(args, found.evidence, now)
    if reference is None:
        print(attest_draft.reference_table(claims), end="")
        return 0
    judged = list(steps(claims, reference, expected=expected, now=now))
    refused = [step for step in judged if step.error]
    if args.json:
        output.result(_wire(claims, judged, bound=not args.any_report_data))
        return next((step.error.exit_code for step in refused if step.error), 0)
    output.stdout.print(f"{claims.tee} evidence: {found.form}", markup=False, soft_wrap=True)
    heading("appraisal", f"by {args.policy}")
    table([_row(step) for step in judged], styles=["red" if step.error else "" for step in judged])
    output.stdout.print()
    if args.any_report_data:
        output.warn("report data not compared: it says nothing of whom this evidence was made for, or when")
    for step in refused[1:]:
        if step.error:
            output.note(f"also refused: {_where(step)}{step.error.message}")
    if refused and refused[0].error:
        raise refused[0].error
    output.stdout.print("the policy wants this enclave", markup=False)
    return 0


def read_reference(path: Path) -> ReferenceValues:
    """The reference values of a whole policy, or of a document that has nothing else.

    Raises:
        PolicyError: it is neither.
    """
    with path.open("rb") as file:
        raw = file.read(MAX_DOCUMENT + 1)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise PolicyError(f"policy: {path} is not UTF-8 text") from None
    if set(parse_toml(text).value) == {"reference"}:
        return parse_reference(text)
    return parse_policy(text).reference


def _expected(args: argparse.Namespace) -> Callable[[Claims], bytes | None]:
    """What each evidence has to hold, of an enclave or of a device."""
    if args.any_report_data:
        return lambda claims: claims.report_data
    if args.report_data is not None:
        data = reading.given_bytes("--report-data", f"hex:{args.report_data}")
        if len(data) != REPORT_DATA_SIZE:
            raise UsageError(f"--report-data: {len(data)} bytes, wanted {REPORT_DATA_SIZE}")
        return lambda claims: bound_data(claims.tee, data)
    if args.nonce is None:
        return lambda claims: None
    nonce = reading.given_bytes("--nonce", args.nonce)
    return lambda claims: _held(claims, nonce)


def _held(claims: Claims, nonce: bytes) -> bytes:
    """How evidence of that kind holds a nonce that it was asked for."""
    if claims.tee in _PADDED:
        return nonce.ljust(REPORT_DATA_SIZE, b"\0")
    # A Nitro enclave may have put it into the field that is named after it, which is signed as well.
    if claims.tee == "nitro" and claims.attributes.get("nonce") == nonce.hex():
        return claims.report_data
    return nonce


def _row(step: Step) -> tuple[str, str, str, str]:
    verdict = "refused" if step.error else "holds"
    if step.error is None and step.got in step.wanted.split(" or "):
        told = f"{_short(step.got)}, as wanted"
    else:
        told = f"got {_short(step.got)}, wanted {_short(step.wanted)}"
    return f"{step.number}.", verdict, f"{_where(step)}{step.name}", told


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _where(step: Step) -> str:
    return "" if step.device is None else f"device {step.device}: "


def _wire(claims: Claims, judged: list[Step], *, bound: bool) -> dict[str, object]:
    told = [
        {
            "step": step.number,
            "name": step.name,
            "device": step.device,
            "holds": step.error is None,
            "got": step.got,
            "wanted": step.wanted,
            **({} if step.error is None else step.error.to_wire()),
        }
        for step in judged
    ]
    first = next((step.error for step in judged if step.error), None)
    verdict: dict[str, object] = {"accepted": first is None, "bound": bound, "steps": told}
    if first is not None:
        verdict |= first.to_wire() | {"exit_status": first.exit_code}
    return verdict | {"claims": claims_wire(claims)}
