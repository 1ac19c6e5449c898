"""`strongroom cas enclaves`: which enclaves live under one's policies."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from strongroom.cas.client.owner import OwnerClient
from strongroom.cli import output
from strongroom.errors import printable


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options besides those that all dealings with a CAS have."""
    parser.add_argument("policy", nargs="?", metavar="NAMESPACE/NAME", help="of this policy alone (default: all)")


def run(args: argparse.Namespace, client: OwnerClient) -> int:
    """Print a table, or the leases as JSON."""
    names = [args.policy] if args.policy else _names(client)
    found: list[dict[str, Any]] = []
    for name in names:
        answer = client.leases(name)
        for lease in answer["leases"]:
            found.append({"policy": name, **lease, "left": lease["expires"] - answer["now"], "now": answer["now"]})
    if args.json:
        output.result([{key: value for key, value in one.items() if key != "now"} for one in found])
    elif found:
        output.stdout.print(enclave_table(found, of_one=bool(args.policy)))
    else:
        output.note(f"no enclave lives under {args.policy}" if args.policy else "no enclave lives under your policies")
    return 0


def _names(client: OwnerClient) -> list[str]:
    """The caller's policies of which it may see who lives."""
    return [str(one["policy"]) for one in client.policies() if {"revoke", "log"} & set(one["rights"])]


def enclave_table(leases: Sequence[Mapping[str, Any]], *, of_one: bool) -> Table:
    """Enclaves, one a line, the oldest first; `of_one` policy, which then is not named."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name, right in (
        *(() if of_one else (("policy", False),)),
        ("lease", True),
        ("replica", True),
        ("tee", False),
        ("measurement", False),
        ("lives", True),
        ("left", True),
        ("key", False),
    ):
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name != "policy")
    for one in leases:
        cells = [
            *([] if of_one else [one["policy"]]),
            one["number"],
            "-" if one["replica"] is None else one["replica"],
            one["tee"],
            one["measurement"][:12],
            span(one["now"] - one["granted"]),
            span(one["left"]),
            one["key"].removeprefix("sha256:")[:12],
        ]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def span(seconds: int) -> str:
    """A length of time in one unit."""
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{max(0, seconds)} s"
