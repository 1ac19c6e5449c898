"""`strongroom policy grants`: what a policy's people let others import, and what others let it import."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from strongroom.cli import output
from strongroom.cli.policy.files import add_cas, cas_client, check_name
from strongroom.errors import printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="NAMESPACE/NAME")
    add_cas(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    name = check_name(args.policy)
    with cas_client(args) as client:
        grants, received = client.grants(name), client.received_grants(name)
    if args.json:
        granted = [signed.to_wire() | {"id": signed.grant.id, "state": state} for signed, state in grants]
        output.result({"grants": granted, "received": received})
        return 0
    given = [
        {
            "id": signed.grant.id,
            "to": signed.grant.importer,
            "resources": signed.grant.resources,
            "purpose": signed.grant.purpose,
            "expires": signed.grant.expires,
            "state": state,
        }
        for signed, state in grants
    ]
    for whom, found in (("to", given), ("from", received)):
        if found:
            output.stdout.print(_table(whom, found))
    if not grants and not received:
        output.note(f"policy {name}: grants nothing to anybody, and those that it imports from grant it nothing")
    return 0


def _table(whom: str, grants: Sequence[Mapping[str, Any]]) -> Table:
    """Names stay whole: what is long folds in `purpose` alone, as far as the terminal lets it."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name in ("id", whom, "gives", "purpose", "until", "state"):
        table.add_column(name, no_wrap=name in ("id", whom, "until"), overflow="fold")
    for grant in grants:
        ends = dt.datetime.fromtimestamp(max(0, min(grant["expires"], 253_402_300_799)), dt.UTC)
        cells = (
            grant["id"][:12],
            grant[whom],
            "\n".join(map(str, grant["resources"])),
            grant["purpose"],
            f"{ends:%Y-%m-%d}",
            grant["state"],
        )
        table.add_row(*(Text("\n".join(printable(line) for line in cell.split("\n"))) for cell in cells))
    return table
