"""`strongroom attest appraise`: does a policy want what the vendor vouches for? Each comparison, those after a failure
too."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from strongroom.attest.appraise import Step, bound, device_steps, steps
from strongroom.attest.binding import REPORT_DATA_SIZE, bound_data
from strongroom.attest.claims import Claims
from strongroom.attest.evidence import DEVICES
from strongroom.attest.reference import ReferenceValues
from strongroom.cas.policy.table import MAX_DOCUMENT
from strongroom.cas.policy.version import reference_of
from strongroom.cli import output
from strongroom.cli.attest import draft as attest_draft
from strongroom.cli.attest import reading as reading
from strongroom.cli.attest.verify import add_sources, claims_wire, show_unchecked, verified
from strongroom.cli.attest.words import heading, table
from strongroom.crypto import equal
from strongroom.errors import AttestationError, PolicyError, UsageError

# Evidence whose report data has 64 bytes, and is padded with zeros where less was put in.
_PADDED = ("sgx", "tdx", "snp", "simulated")

# The longest field that a nonce may stand in: Nitro's `user_data` and `nonce`.
MAX_USER_DATA = 1024

_REPORT_DATA = "report data"
_UNBOUND_MEANS = "it says nothing of whom this evidence was made for, or when"
_UNBOUND = "the report data (--any-report-data)"

# Characters of a value in the table; errors and --json have them all.
_MAX_SHOWN = 48


def configure(parser: argparse.ArgumentParser) -> None:
    reading.add_evidence(parser)
    reading.add_trust(parser)
    add_sources(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--policy", type=Path, metavar="FILE", help="a policy, or a file with its table [reference] only")
    what.add_argument(
        "--draft-policy",
        action="store_true",
        help="print a table [reference] for just this evidence, with its flaws as comments to judge",
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
    named = frozenset[str]() if reference is None else reference.anchors.named
    account, claims = verified(args, found.evidence, now, named=named)
    if reference is None:
        return _draft(args, claims, expected, now)
    devices = reference.devices if claims.tee in DEVICES else None
    judged = list(
        steps(claims, reference, expected=expected, now=now)
        if devices is None
        else device_steps(claims, devices, expected=expected, now=now)
    )
    refused = [step for step in judged if step.error]
    if args.json:
        output.result(_wire(claims, judged, compared=not args.any_report_data) | {"not_checked": account.not_checked})
        return next((step.error.exit_code for step in refused if step.error), 0)
    output.stdout.print(f"{claims.tee} evidence: {found.form}", markup=False, soft_wrap=True)
    show_unchecked((*account.not_checked, *([_UNBOUND] if args.any_report_data else [])))
    heading("appraisal", f"by {args.policy}")
    table(
        [_row(step, compared=not args.any_report_data) for step in judged],
        styles=["red" if step.error else "" for step in judged],
    )
    output.stdout.print()
    if args.any_report_data:
        output.warn(f"report data not compared: {_UNBOUND_MEANS}")
    if refused and refused[0].error:
        return _refuse(args, refused[0].error, refused[1:])
    what = "enclave" if devices is None else "device, with an enclave that uses it"
    output.stdout.print(f"the policy wants this {what}", markup=False)
    return 0


def _refuse(args: argparse.Namespace, error: AttestationError, others: list[Step]) -> int:
    """The first failure is the error; the others are told after it."""
    if args.debug:
        raise error
    output.error(error)
    for step in others:
        if step.error:
            output.note(f"also refused: {_where(step)}{step.error.message}")
    return error.exit_code


def _draft(args: argparse.Namespace, claims: Claims, expected: Callable[[Claims], bytes | None], now: int) -> int:
    """Print the draft; not of evidence that was made for something else than what was said."""
    draft = attest_draft.reference_table(claims)
    bound = args.report_data is not None or args.nonce is not None
    if bound:
        for step in steps(claims, ReferenceValues((claims.tee,), ()), expected=expected, now=now):
            if step.error and step.name == _REPORT_DATA:
                raise step.error
    else:
        output.warn(f"report data not compared: {_UNBOUND_MEANS}")
    if args.json:
        output.result({"policy": draft, "bound": bound, "claims": claims_wire(claims)})
    else:
        print(draft, end="")
    return 0


def read_reference(path: Path) -> ReferenceValues:
    """The reference values of a whole policy, or of a document that has nothing else.

    Raises:
        PolicyError: it is neither.
    """
    return reference_of(read_document(path))


def read_document(path: Path) -> str:
    """Raises PolicyError unless it is text."""
    with path.open("rb") as file:
        raw = file.read(MAX_DOCUMENT + 1)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise PolicyError(f"policy: {path} is not UTF-8 text") from None


def _expected(args: argparse.Namespace) -> Callable[[Claims], bytes | None]:
    """What each evidence has to hold, of an enclave or of a device."""
    given = reading.bound_bytes(args, MAX_USER_DATA)
    if args.any_report_data:
        return lambda claims: claims.report_data
    if given is None:
        return lambda claims: None
    if args.report_data is not None:
        return lambda claims: bound(claims, given)
    return lambda claims: _held(claims, given)


def _held(claims: Claims, nonce: bytes) -> bytes:
    """How evidence of that kind holds a nonce that it was asked for: as it is, or as `attest here` binds it, which
    makes report data of it."""
    padded = nonce.ljust(REPORT_DATA_SIZE, b"\0")
    if claims.program and len(nonce) <= REPORT_DATA_SIZE:
        return bound(claims, padded)
    if claims.tee in _PADDED:
        if len(nonce) > REPORT_DATA_SIZE:
            raise UsageError(f"--nonce: {len(nonce)} bytes, wanted 1 to {REPORT_DATA_SIZE} for {claims.tee}")
        return padded
    # A Nitro enclave may have put it into the field that is named after it, which is signed as well.
    if claims.tee == "nitro" and claims.attributes.get("nonce") == nonce.hex():
        return claims.report_data
    held = bound_data(claims.tee, padded)
    return held if len(nonce) <= REPORT_DATA_SIZE and equal(held, claims.report_data) else nonce


def _row(step: Step, *, compared: bool) -> tuple[str, str, str, str]:
    name = f"{_where(step)}{step.name}"
    if step.name == _REPORT_DATA and not compared:
        return f"{step.number}.", "open", name, f"{_short(step.got)}, not compared"
    if step.error is None and step.got.partition(": ")[0] in step.wanted.split(" or "):
        told = f"{_short(step.got)}, as wanted"
    elif step.error is None and step.wanted == "any":
        told = f"{_short(step.got)}, not asked for"
    else:
        got, wanted = _apart(step.got, step.wanted)
        told = f"got {got}, wanted {wanted}"
    return f"{step.number}.", "refused" if step.error else "holds", name, told


def _apart(got: str, wanted: str) -> tuple[str, str]:
    """Both shortened, and so that they still differ where they do."""
    if _short(got) != _short(wanted):
        return _short(got), _short(wanted)
    start = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    start = max(start - 8, 0)
    return f"...{_short(got[start:])}", f"...{_short(wanted[start:])}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _where(step: Step) -> str:
    return "" if step.device is None else f"device {step.device}: "


def _wire(claims: Claims, judged: list[Step], *, compared: bool) -> dict[str, object]:
    told = [
        {
            "step": step.number,
            "name": step.name,
            "device": step.device,
            "holds": step.error is None if compared or step.name != _REPORT_DATA else None,
            "got": step.got,
            "wanted": step.wanted if compared or step.name != _REPORT_DATA else None,
            **({} if step.error is None else step.error.to_wire()),
        }
        for step in judged
    ]
    first = next((step.error for step in judged if step.error), None)
    bound = compared and all(step.error is None for step in judged if step.name == _REPORT_DATA)
    verdict: dict[str, object] = {"accepted": first is None, "bound": bound, "steps": told}
    if first is not None:
        verdict |= first.to_wire() | {"exit_status": first.exit_code}
    return verdict | {"claims": claims_wire(claims)}
