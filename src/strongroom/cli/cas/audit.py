"""`strongroom cas audit`: show, export and verify the audit log of one's own policies, offline too."""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from strongroom.cas.client.address import ADDRESS_FILE, CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.files import replace
from strongroom.cas.log.audit import MAX_AUDIT, Audit, AuditReport, verify_audit
from strongroom.cas.log.head import NO_ENTRIES, FileHead, Head
from strongroom.cas.log.note import Checkpoint, WitnessKey, log_vkey
from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.workspace import Home
from strongroom.errors import FormatError, RollbackError, UsageError, printable

_DIGEST = re.compile(r"([0-9a-f]{12})[0-9a-f]{52,}")
_INDENT = 7  # as wide as a number
_WIDE = 100  # columns in which, besides the policy's name, a line has room for most details


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the words between `audit` and the options that all dealings with a CAS have."""
    parser.add_argument("what", choices=("show", "verify", "export"), help="print, check, or write for later")
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="an exported audit: nothing is asked of a CAS"
    )
    parser.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="VKEY",
        help="verify: a witness whose cosignatures count, as `strongroom cas witness` prints it; may be given again",
    )
    parser.add_argument(
        "--quorum", type=int, metavar="K", help="verify: of how many of them one is wanted (default: all)"
    )
    parser.add_argument("--seen", metavar="SIZE:HASH", help="verify: a head that the log must extend")


def offline(args: argparse.Namespace) -> bool:
    """Whether the command needs no CAS."""
    return args.file is not None and args.what != "export"


def run_offline(args: argparse.Namespace, home: Home) -> int:
    """Show or verify an exported audit."""
    _check(args)
    if args.file.stat().st_size > MAX_AUDIT:
        raise FormatError(f"{args.file}: longer than {MAX_AUDIT} bytes")
    audit = Audit.parse(args.file.read_bytes())
    cas_root = cas_address.root_of(args) or _own_root(home)
    if cas_root is None:
        raise UsageError("--cas-root: this user has no CAS of its own", hint="say whose log it must be: --cas-root")
    return _tell(args, audit, cas_root, home.heads(cas_root))


def run(args: argparse.Namespace, client: OwnerClient, cas_root: str) -> int:
    """Show, verify or export what a CAS says."""
    _check(args)
    audit = client.audit()
    if args.what == "export":
        verify_audit(audit, cas_root=cas_root)
        written = audit.to_bytes()
        if len(written) > MAX_AUDIT:
            raise FormatError(
                f"{args.file}: would be {len(written)} bytes, and no more than {MAX_AUDIT} are read back",
                hint="verify it online: `strongroom cas audit verify`",
            )
        replace(args.file, written)
        if args.json:
            output.result({"file": str(args.file), "entries": len(audit.entries)})
        else:
            output.stdout.print(f"{len(audit.entries)} entries in {args.file}", markup=False, soft_wrap=True)
        return 0
    return _tell(args, audit, cas_root)


def _check(args: argparse.Namespace) -> None:
    if args.what == "export" and args.file is None:
        raise UsageError("FILE: missing", hint="say where the audit is to be written")
    if args.what != "verify" and (args.witness or args.quorum is not None or args.seen):
        raise UsageError("--witness, --quorum, --seen: are of `verify` only")


def _own_root(home: Home) -> str | None:
    try:
        return CasAddress.load(home.path / "cas" / ADDRESS_FILE).cas_root
    except FileNotFoundError:
        return None


def _tell(args: argparse.Namespace, audit: Audit, cas_root: str, heads: FileHead | None = None) -> int:
    """Print what an audit shows.

    Args:
        heads: what this machine has seen; None if the audit was made with it just now.
    """
    if args.what == "show":
        _show(args, audit)
        return 0
    keys = [WitnessKey.parse(vkey) for vkey in args.witness]
    quorum = len(keys) if args.quorum is None else args.quorum
    seen = Head.parse(args.seen) if args.seen else NO_ENTRIES
    report = verify_audit(audit, cas_root=cas_root, witnesses=keys, quorum=quorum, seen=seen)
    vouched = heads is None or seen in (report.head, report.seen)
    if heads is not None and not args.seen:
        vouched = _hold(report, heads)
    if args.json:
        output.result(_report(report, quorum, vouched=vouched))
    else:
        _print_report(report, quorum, keys, vouched=vouched)
    return 0


def _hold(report: AuditReport, heads: FileHead) -> bool:
    """Whether the head that a file says was seen is one that this machine has seen.

    Raises:
        RollbackError: this machine has seen another log, or more of it.
    """
    known = heads.read()
    if known.size > report.head.size:
        raise RollbackError(
            f"log: the audit has {report.head.size} entries, and this machine has seen {known.size}",
            hint=f"export it anew; --seen 0:{NO_ENTRIES.root.hex()} checks an old one for itself",
        )
    if any(known.size == one.size and known != one for one in (report.head, report.seen)):
        raise RollbackError(
            f"log: the {known.size} entries that this machine has seen are others: the log was forked",
            hint=f"keep the audit and the head: they prove it; {heads.hint}",
        )
    return known in (report.head, report.seen)


def _report(report: AuditReport, quorum: int, *, vouched: bool) -> dict[str, object]:
    return {
        "head": str(report.head),
        "extends": str(report.seen),
        "extends_known": vouched,
        "policies": dict(report.policies),
        "witnesses": [{"name": one.name, "size": one.size, "time": one.time} for one in report.witnesses],
        "quorum": quorum,
        "witnessed": report.witnessed,
    }


def _print_report(report: AuditReport, quorum: int, keys: Sequence[WitnessKey], *, vouched: bool) -> None:
    def say(text: str) -> None:
        output.stdout.print(printable(text), markup=False, soft_wrap=True)

    say(f"head             {report.head}")
    say("signature        by the CAS's root key")
    before = f"extends the {report.seen.size} entries seen before" if report.seen.size else "nothing was seen before"
    say(f"history          {before}" + ("" if vouched else ", by the file's own account"))
    if not report.policies:
        say("entries          none is of this key's policies")
    for policy, count in report.policies.items():
        say(f"entries          {count} of {policy}, each in the log, none missing before the last")
    for one in report.witnesses:
        said = "has cosigned nothing" if one.time is None else f"{one.size} entries at {_stamp(one.time)}"
        say(f"witness          {one.name}: {said}")
    if quorum:
        say(f"witnessed        {report.witnessed} entries, by {quorum} of {len(keys)}")


def _show(args: argparse.Namespace, audit: Audit) -> None:
    """What it holds; nothing of it is verified."""
    checkpoint = Checkpoint.parse(audit.checkpoint.text)
    if args.json:
        entries = [entry.to_wire() for entry, _ in audit.entries]
        shown = {"cas_root": audit.cas_root, "vkey": log_vkey(audit.key), "checkpoint": str(audit.checkpoint)}
        cosigned = [str(one.note) for one in audit.witnessed]
        output.result({**shown, "seen": str(audit.seen.head), "witnessed": cosigned, "entries": entries})
        return
    # Notes and entries come from elsewhere: control characters go, markup is shown.
    for line in str(audit.checkpoint).splitlines():
        output.stdout.print(printable(line), markup=False, soft_wrap=True)
    output.stdout.print(f"\nlog key {log_vkey(audit.key)}", markup=False, soft_wrap=True)
    for one in audit.witnessed:
        names = ", ".join(signature.name for signature in one.note.signatures[1:])
        size = Checkpoint.parse(one.note.text).size
        output.stdout.print(printable(f"{size} entries cosigned by {names}"), markup=False, soft_wrap=True)
    if checkpoint.size:
        print_entries([entry.to_wire() for entry, _ in audit.entries])
    output.note("nothing of this was verified: `strongroom cas audit verify` does")
    sys.stdout.flush()


def _stamp(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    except (ValueError, OverflowError, OSError):
        return f"{seconds} seconds after 1970"


def print_entries(entries: Sequence[dict[str, object]]) -> None:
    """Entries of the log: a line each for a pipe or a wide terminal, and on a narrow one the details below it."""
    width = output.stdout.width
    longest = max((len(str(entry["policy"])) for entry in entries), default=0)
    for entry in entries:
        # A refused enclave can put text into a detail: it is shown as it is, not as markup.
        begin = f"{entry['number']:>6} {_stamp(int(str(entry['time'])))} {entry['event']:<9}"
        policy, detail = printable(entry["policy"]), printable(_shown(entry["detail"]))
        if not output.stdout.is_terminal or width >= _WIDE + longest:
            output.stdout.print(f"{begin} {policy:<{longest}}  {detail}", markup=False, soft_wrap=True)
            continue
        output.stdout.print(f"{begin} {policy}", markup=False, soft_wrap=True)
        for line in textwrap.wrap(detail, max(20, width - _INDENT), break_on_hyphens=False):
            output.stdout.print(f"{' ' * _INDENT}{line}", markup=False, soft_wrap=True)


def _shown(detail: object) -> str:
    """A detail of the log for a person: `name value` pairs, digests cut short."""
    try:
        value = json.loads(detail) if isinstance(detail, str) else detail
    except (ValueError, RecursionError):
        value = detail
    if isinstance(value, dict):
        parts = {name: _part(name, part) for name, part in value.items()}
        text = ", ".join(f"{name} {part}" for name, part in parts.items())
    else:
        text = json.dumps(value)
    return _DIGEST.sub(lambda match: match[1] + "...", text)


def _part(name: str, part: object) -> object:
    if name == "expires" and isinstance(part, int):
        return _stamp(part)
    return " and ".join(map(str, part)) if isinstance(part, list) else part
