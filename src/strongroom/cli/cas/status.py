"""`strongroom cas status` and `policies`: how a CAS is, and what one has in it, for a person or as JSON."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.policy.rights import RIGHTS
from strongroom.cli import output
from strongroom.errors import printable


def status(args: argparse.Namespace, client: OwnerClient, **own: object) -> None:
    """Print how the CAS is, and what of it is this user's: `own`."""
    told = client.status() | own
    if args.json:
        output.result(told)
        return
    head = str(told.get("head", ""))
    about = told.get("about")
    about = about if isinstance(about, Mapping) else {}
    lines = {
        "CAS": f"{told.get('url')}, version {told.get('version')}",
        "root": told.get("cas_root"),
        "ready": "yes" if told.get("ready") is True else f"no: {told.get('waiting')}",
        "up": _span(told.get("uptime")),
        "restart": about.get("restart", "unknown"),
        "unseal": about.get("unseal", "unknown"),
        "evidence": about.get("evidence", "unknown"),
        "tenants": f"namespaces are {about.get('namespaces', 'unknown')}; tokens are "
        f"{'' if about.get('tokens') is True else 'not '}taken",
        "database": about.get("database", "unknown"),
        "endorsed": "by what the CAS fetches"
        if about.get("endorsements") is True
        else "by what comes with evidence alone",
        "log": f"{_entries(head.partition(':')[0])}, {head.partition(':')[2][:16]}...",
        "seen by": "; ".join(_seen(one) for one in _list(told.get("witnesses"))) or "none",
        "peers": "; ".join(_peer(place, one) for place, one in enumerate(_list(told.get("peers")), 1)) or "none",
        "caller": " and ".join(str(who) for who in (told.get("owner"), told.get("login")) if who),
        "vendor": told.get("simulated_vendor"),
        "": "of this user's simulated enclaves",
    }
    for name, value in lines.items():
        output.stdout.print(f"{name:8} {printable(value)}", markup=False, soft_wrap=True)


def policies(args: argparse.Namespace, client: OwnerClient) -> None:
    """Print the caller's policies."""
    found = client.policies()
    if args.json:
        output.result(found)
        return
    if not found:
        output.note("this caller administers no policy there")
        return
    output.stdout.print(policy_table(found, now=int(time.time())))


def policy_table(found: Sequence[Mapping[str, Any]], *, now: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name, more in (
        ("policy", {"overflow": "fold"}),
        ("v", {"justify": "right"}),
        ("role", {}),
        ("live", {"justify": "right"}),
        ("sign", {}),
        ("expires", {}),
        ("changed", {}),
        ("may", {"overflow": "fold", "min_width": 7}),
    ):
        table.add_column(name, **more)
    for one in found:
        rights = [str(right) for right in one["rights"]]
        cells = (
            one["policy"],
            one["version"],
            one["role"],
            _live(one),
            f"{one['owners']['threshold']}/{one['owners']['of']}" if one["owners"] else "-",
            _until(one["expires"], now),
            _day(one["changed"]),
            "all" if len(rights) == len(RIGHTS) else " ".join(rights),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _live(one: Mapping[str, Any]) -> str:
    live = "?" if one["live"] is None else str(one["live"])
    return live if one["instances"] is None else f"{live}/{one['instances']}"


def _until(expires: object, now: int) -> str:
    if not isinstance(expires, int):
        return "-"
    return _day(expires) if expires > now else "expired"


def _day(seconds: object) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds)) if isinstance(seconds, int) else "?"


def _span(seconds: object) -> str:
    """A length of time in its two largest units."""
    if not isinstance(seconds, int):
        return "unknown"
    parts = [(seconds // 86_400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    first = next((place for place, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])


def _seen(one: Mapping[str, Any]) -> str:
    if one.get("size") is None:
        return f"{one.get('name')}, which has cosigned nothing yet"
    return f"{one.get('name')}: {_entries(one['size'])}, {_span(one.get('age'))} ago"


def _peer(place: int, one: Mapping[str, Any]) -> str:
    """By its place among the options --peer: the CAS tells strangers no addresses."""
    if one.get("size") is None:
        return f"{place}: {'has not answered yet' if one.get('answers') is True else 'has never answered'}"
    seen = f"{_entries(one['size'])}, {_span(one.get('age'))} ago"
    return f"{place}: {seen}" if one.get("answers") is True else f"{place}: does not answer; seen with {seen}"


def _entries(count: object) -> str:
    return "1 entry" if str(count) == "1" else f"{count} entries"


def _list(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
