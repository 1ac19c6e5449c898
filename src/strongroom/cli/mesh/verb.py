"""`strongroom mesh`: who is in the mesh of the enclaves that run here, and what goes between them."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from strongroom.cli import output
from strongroom.cli.mesh.told import outside, prometheus, running
from strongroom.cli.parser import add_debug
from strongroom.cli.workspace import Home

_SECONDS = 1.0
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("status", "peers, tunnels, bytes and refusals of each enclave that runs here"),
        ("top", "the same, again and again, until Ctrl-C"),
    ):
        action = actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        add_debug(action)
        if name == "status":
            form = action.add_mutually_exclusive_group()
            output.add_json(form)
            form.add_argument("--prometheus", action="store_true", help="in Prometheus' text format")


def run(args: argparse.Namespace) -> int:
    home = Home.open()
    if args.action == "top":
        with Live(_table(running(home)), console=output.stdout, auto_refresh=False) as live:
            while True:
                time.sleep(_SECONDS)
                live.update(_table(running(home)), refresh=True)
    statuses = running(home)
    if args.json:
        output.result({"enclaves": statuses})
    elif args.prometheus:
        sys.stdout.write(prometheus(statuses))
    elif statuses:
        output.stdout.print(_table(statuses))
    else:
        output.note("no enclave with a mesh runs here, nor one with hosts outside")
    return 0


def _table(statuses: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("enclave and its peers", overflow="fold")
    for name in ("address", "tunnels", "opened", "sent", "received"):
        table.add_column(name, justify="right", no_wrap=True)
    for status in statuses:
        table.add_row(
            Text(str(status["name"])), str(status["address"]), str(status["tunnels"]), "", "", "", style="bold"
        )
        for member in status["members"]:
            counts = (str(member["tunnels"]), str(member["opened"]), _size(member["sent"]), _size(member["received"]))
            table.add_row(Text(f"  {member['name']}"), str(member["address"]), *counts)
        _refused(table, status["refusals"])
        for name, each in outside(status):
            counts = (str(each["connections"]), str(each["opened"]), _size(each["sent"]), _size(each["received"]))
            table.add_row(Text(f"  {name}"), "outside", *counts)
            _refused(table, each["refusals"], str(each.get("doubt", "")))
    return table


def _refused(table: Table, refusals: dict[str, int], doubt: str = "") -> None:
    refused = ", ".join(f"{why} {count}" for why, count in refusals.items() if count)
    refused += f" (the last certificate: {doubt})" if doubt else ""
    if refused:
        table.add_row(Text(f"  refused: {refused}"))


def _size(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"
