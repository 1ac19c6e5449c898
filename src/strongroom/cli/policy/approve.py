"""`strongroom policy approve`: look at what is asked for, sign it, and store the grant once enough have signed."""

from __future__ import annotations

import argparse
import datetime as dt
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.files import replace as replace_file
from strongroom.cas.policy.grant_files import GrantFile, GrantRequest, read_object
from strongroom.cas.policy.grants import Grant, SignedGrant, check_exportable
from strongroom.cli import output
from strongroom.cli.policy.files import add_cas, cas_client
from strongroom.cli.signers import KEY, signer
from strongroom.cli.workspace import Home
from strongroom.errors import FormatError, UsageError, printable

_DAYS = 30


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("request", type=Path, metavar="FILE", help="a request, or a grant that others have signed")
    parser.add_argument("--show", action="store_true", help="only show what would be granted; sign nothing")
    parser.add_argument(
        "--expires", metavar="DATE", help=f"when the grant ends, 2027-01-31 (UTC; default: in {_DAYS} days)"
    )
    parser.add_argument(
        "--key", metavar=KEY, help="the key to sign with, a file or a pkcs11: URI (default: that of --owner)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where a grant goes that others sign next (default: FILE.grant)"
    )
    add_cas(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    file, command = _read(args)
    if not args.json:
        show_grant(file.signed.grant, file.reference, command)
    if args.show:
        if args.json:
            output.result({"grant": _wire(file.signed.grant)})
        return 0
    with cas_client(args) as client:
        return _sign(args, client, file)


def _sign(args: argparse.Namespace, client: OwnerClient, file: GrantFile) -> int:
    signed = file.signed
    exporter = client.policy(signed.grant.source)
    check_exportable(signed.grant, exporter)
    signed.check_signatures(exporter)  # whoever passed the file on may have put anything there
    path = args.key or args.owner
    signed = signed.signed_by(signer(path, Home.open()), exporter)
    missing = signed.missing(exporter)
    told: dict[str, Any] = {"grant": _wire(signed.grant), "id": signed.grant.id, "missing": missing}
    if missing:
        given = args.out or _beside(args.request)
        replace_file(given, GrantFile(signed, file.reference).to_text().encode())
        told["path"] = str(given)
        output.note(f"signed, and written to {given}; still to sign: {missing}, with `strongroom policy approve`")
    else:
        client.put_grant(signed)
        output.note(f"granted: {signed.grant.id}")
    if args.json:
        output.result(told)
    return 0


def _beside(path: Path) -> Path:
    return path if path.name.endswith(".grant") else path.with_name(path.name + ".grant")


def _read(args: argparse.Namespace) -> tuple[GrantFile, Sequence[str]]:
    """The grant to sign, and the command that a request says it is for."""
    try:
        text = args.request.read_text("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"request: {args.request} is not UTF-8 text") from None
    if "grant" not in read_object(text, "request"):
        request, now = GrantRequest.parse(text), int(time.time())
        # Seconds as serials: they rise, and people who sign apart need not ask each other for the next one.
        grant = request.grant(expires=_expiry(args.expires, now), serial=now)
        return GrantFile(SignedGrant(grant), request.reference), request.command
    if args.expires:
        raise UsageError("--expires: the grant is signed already, and says when it ends", hint="approve the request")
    return GrantFile.parse(text), ()


def _expiry(text: str | None, now: int) -> int:
    if text is None:
        return now + _DAYS * 86_400
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--expires: got {text[:40]!r}, wanted a date as 2027-01-31, or with a time") from None
    expires = int((moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp())
    if expires <= now:
        raise UsageError(f"--expires: {text[:40]} is past")
    return expires


def show_grant(grant: Grant, reference: Mapping[str, Any], command: Sequence[str] = ()) -> None:
    """All that a signature stands for, for a person."""
    table = Table(title="what is granted", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    ends = dt.datetime.fromtimestamp(min(grant.expires, 253_402_300_799), dt.UTC)
    rows = [
        ("of", grant.source),
        ("to", grant.importer),
        ("gives", "\n".join(f"{name} ({_meaning(name)})" for name in grant.resources)),
        ("purpose", grant.purpose),
        ("outputs go to", "\n".join(grant.recipients) or "nobody else"),
        ("until", f"{ends:%Y-%m-%d %H:%M} UTC"),
        ("enclaves measured", "\n".join(grant.measurements)),
        ("appraised by", grant.reference),
    ]
    rows += [(f"  {name}", value) for name, value in _reference(reference)]
    if command:
        rows.append(("it says it runs", " ".join(command)))
    for name, value in rows:
        table.add_row(name, Text("\n".join(printable(line) for line in value.split("\n"))))
    output.stdout.print(table)
    for warning in _warnings(reference):
        output.warn(warning)


def _meaning(resource: str) -> str:
    kind = resource.partition(":")[0]
    return {
        "secret": "its value, to know and keep",
        "vault": "the key of all of it, to read, and its newest root",
        "sealed": "the file's key, to read, and its newest root",
    }[kind]


def _reference(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = []
    for name, value in table.items():
        if name != "measurements":
            shown.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return shown


def _warnings(table: Mapping[str, Any]) -> list[str]:
    devices = table.get("devices")
    each = [table, *([devices] if isinstance(devices, Mapping) else [])]
    found = []
    if any("allow_simulated" in one for one in each):
        found.append("simulated enclaves may have it: whoever holds that vendor's key reads everything")
    for name in ("weaknesses_allowed", "advisories_allowed"):
        if any(one.get(name) for one in each):
            found.append(f"{name}: problems of the platform that are known are accepted")
    return found


def _wire(grant: Grant) -> dict[str, Any]:
    return {
        "from": grant.source,
        "to": grant.importer,
        "resources": list(grant.resources),
        "measurements": list(grant.measurements),
        "reference": grant.reference,
        "purpose": grant.purpose,
        "recipients": list(grant.recipients),
        "expires": grant.expires,
        "serial": grant.serial,
    }
