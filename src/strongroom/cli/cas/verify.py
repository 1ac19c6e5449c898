"""`strongroom cas verify`: appraise a CAS by its own evidence, before anything is entrusted to it."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.attest.appraise import is_simulated
from strongroom.attest.tee.simulated import BANNER
from strongroom.cas.client.own_evidence import CasAppraisal
from strongroom.cas.client.verification import verify_cas
from strongroom.cli import output
from strongroom.cli.attest.appraise import read_reference
from strongroom.cli.cas.address import URL_VARIABLE, root_of, url_of
from strongroom.cli.cas.attester import measured
from strongroom.cli.parser import add_debug
from strongroom.cli.workspace import Home
from strongroom.errors import UsageError, printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cas", metavar="URL", help=f"the CAS (default: that of {URL_VARIABLE})")
    parser.add_argument(
        "--cas-root", metavar="sha256:...", help="the root that it must have (default: as --cas, or print which)"
    )
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", help="what its evidence must be: TOML with a table [reference]"
    )
    parser.add_argument(
        "--draft",
        action="store_true",
        help="print such a table for simulated CASs of this installation and this user's vendor, and ask none",
    )
    add_debug(parser)
    output.add_json(parser)


def run(args: argparse.Namespace, home: Home) -> int:
    if args.draft:
        print(_draft(home), end="")
        return 0
    url, root = url_of(args), root_of(args)
    if not url or not args.reference:
        raise UsageError("--cas, --reference: missing", hint="say which CAS, and what its evidence must be")
    appraisal = verify_cas(url, read_reference(args.reference), cas_root=root)
    told = _told(appraisal)
    if args.json:
        output.result(told)
    else:
        for name, value in told.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            line = f"{name.replace('_', ' '):16} {shown or 'none'}"
            output.stdout.print(printable(line), markup=False, soft_wrap=True)
    if not root:
        output.note(f"pin its root: --cas {url} --cas-root {appraisal.cas_root}")
    if is_simulated(appraisal.result.tee, appraisal.result.vendor_root):
        output.warn(BANNER)
    if appraisal.unseal == "trust-disk":
        output.warn("its root secret lies in a file: whoever has its disk reads and signs what it does")
    else:
        output.note("unseal is how its root secret is kept now; whoever created it may know the secret all the same")
    if appraisal.restart == "trust-disk":
        output.warn("nobody confirms that its database is the latest: whoever has its disk can put back an older one")
    return 0


def _told(appraisal: CasAppraisal) -> dict[str, object]:
    result = appraisal.result
    return {
        "cas_root": appraisal.cas_root,
        "tee": result.tee,
        "measurement": result.measurement,
        "vendor_root": result.vendor_root,
        "tcb_status": result.tcb_status,
        "weaknesses": list(result.weaknesses),
        "policy": appraisal.policy,
        "policy_digest": appraisal.policy_digest,
        "restart": appraisal.restart,
        "unseal": appraisal.unseal,
    }


def _draft(home: Home) -> str:
    return (
        "[reference]\n"
        'tees = ["simulated"]\n'
        f'measurements = ["{measured().value}"]\n'
        f'allow_simulated = "{home.vendor().root_digest}"\n'
    )
