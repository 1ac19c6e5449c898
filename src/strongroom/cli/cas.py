"""`strongroom cas`: run a CAS, and an owner's dealings with one."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

from rich.table import Table
from rich.text import Text

from strongroom.cas.client import OwnerClient
from strongroom.cas.policy import POLICY_NAME
from strongroom.cas.server import ADDRESS_FILE, CasAddress, prepare
from strongroom.cli import output
from strongroom.cli.serve import local_url
from strongroom.cli.workspace import Home, SealedVault, entrust, read_policy
from strongroom.crypto import SigningKey
from strongroom.errors import UsageError, printable

_DIGEST = re.compile(r"([0-9a-f]{16})[0-9a-f]{48,}")


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    start = actions.add_parser("start", help="run a CAS until it is told to stop")
    start.add_argument("--state", type=Path, metavar="DIR", help="its state (default: this user's development CAS)")
    start.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    start.add_argument("--port", type=int, default=0, help="the port (default: any free one)")
    start.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    output.add_json(start)

    for name, summary in (
        ("status", "who is it"),
        ("apply", "sign a policy and store it"),
        ("show", "print a policy"),
        ("entrust", "give it a vault's key, and the root that the vault has now"),
        ("secret", "store a secret that a policy names, read from standard input"),
        ("log", "print the audit log of one's policies"),
    ):
        action = actions.add_parser(name, help=summary)
        action.add_argument("--cas", metavar="URL", help="the CAS (default: this user's development CAS)")
        action.add_argument("--cas-root", metavar="sha256:...", help="with --cas: the fingerprint of its root key")
        action.add_argument("--owner", type=Path, metavar="FILE", help="the owner's key (default: this user's)")
        action.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
        output.add_json(action)
        if name == "apply":
            action.add_argument("policy", type=Path, metavar="FILE")
        if name in ("show", "entrust", "secret"):
            action.add_argument("policy", metavar="NAMESPACE/NAME")
        if name == "entrust":
            action.add_argument("name", metavar="NAME", help="the vault's name in the policy")
            action.add_argument("vault", type=Path, metavar="VAULT")
            action.add_argument("--key", type=Path, metavar="FILE", help="its key file (default: VAULT.key)")
        if name == "secret":
            action.add_argument("name", metavar="NAME", help="the secret's name in the policy")


def run(args: argparse.Namespace) -> int:
    if args.action in ("show", "entrust", "secret") and not POLICY_NAME.fullmatch(args.policy):
        raise UsageError(
            f"policy: got {args.policy[:200]!r}, wanted namespace/name in lower case",
            hint=f"the name stands in the policy's document; `strongroom cas {args.action} --help` shows the arguments",
        )
    home = Home.open()
    if args.action == "start":
        return _start(args, home)
    if bool(args.cas) != bool(args.cas_root):
        raise UsageError(
            "--cas, --cas-root: one is useless without the other",
            hint="give both; `strongroom cas start` prints them",
        )
    owner = SigningKey.load(args.owner) if args.owner else home.owner()
    if args.cas:
        return _deal(args, CasAddress(args.cas, args.cas_root), owner)
    with home.cas() as address:
        return _deal(args, address, owner)


def _start(args: argparse.Namespace, home: Home) -> int:
    directory = args.state or home.path / "cas"
    server, address, store = prepare(directory, host=args.host, port=args.port)
    # A CAS that listens everywhere is shown as this machine reaches it.
    url = local_url(args.host, server.port)
    if args.json:
        output.result({"url": url, "cas_root": address.cas_root, "state": str(directory)})
    else:
        output.stdout.print(f"CAS at {url}\nroot {address.cas_root}", markup=False, soft_wrap=True)
    output.note(f"address written to {directory / ADDRESS_FILE}; Ctrl-C ends it")
    output.warn("its keys lie in files on this machine: run it where its owner trusts the machine")
    sys.stdout.flush()
    try:
        server.run()
    finally:
        store.close()
    return 0


def _deal(args: argparse.Namespace, address: CasAddress, owner: SigningKey) -> int:
    with OwnerClient(address.url, cas_root=address.cas_root, owner=owner) as client:
        match args.action:
            case "status":
                status = client.describe() | {"url": address.url, "owner": owner.public.fingerprint}
                status["simulated_vendor"] = Home.open().vendor().root_digest
                _print(args, status)
            case "apply":
                policy = client.apply(read_policy(args.policy).text)
                _print(args, {"policy": policy.name, "version": policy.version, "digest": policy.digest})
            case "show":
                policy = client.policy(args.policy)
                if args.json:
                    output.result({"policy": policy.name, "version": policy.version, "text": policy.text})
                else:
                    sys.stdout.write(policy.text)
            case "entrust":
                policy = client.policy(args.policy)
                rule = policy.vault(args.name)
                if rule is None:
                    raise UsageError(
                        f"vault: policy {policy.name} names none called {args.name!r}",
                        hint=f"`strongroom cas show {policy.name}` prints the policy",
                    )
                sealed = SealedVault.at(args.vault, args.key)
                if rule.access != "mirror":
                    sealed.key()
                entrust(client, policy, {args.name: sealed})
                _print(args, {"policy": policy.name, "vault": args.name, "path": str(args.vault)})
            case "secret":
                if sys.stdin.isatty():
                    output.note("the secret, then Ctrl-D:")
                client.put_secret(args.policy, args.name, sys.stdin.buffer.read().rstrip(b"\n"))
                _print(args, {"policy": args.policy, "secret": args.name})
            case "log":
                _log(args, client)
    return 0


def _print(args: argparse.Namespace, value: dict[str, object]) -> None:
    if args.json:
        output.result(value)
        return
    for name, item in value.items():
        output.stdout.print(f"{name:16} {item}", markup=False, soft_wrap=True)


def _log(args: argparse.Namespace, client: OwnerClient) -> None:
    entries = client.log()
    if args.json:
        output.result(entries)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    # 80 columns: number, time and event stay whole; long policy names and details fold.
    for name in ("number", "time", "event"):
        table.add_column(name, no_wrap=True, justify="right" if name == "number" else "left")
    table.add_column("policy", overflow="fold", max_width=22)
    table.add_column("detail", overflow="fold", ratio=1)
    for entry in entries:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(int(entry["time"])))
        # A refused enclave can put text into a detail: it is shown as it is, not as markup.
        row = (entry["number"], stamp, entry["event"], entry["policy"], _shown(entry["detail"]))
        table.add_row(*(Text(printable(value)) for value in row))
    output.stdout.print(table)


def _shown(detail: object) -> str:
    """A detail of the log for a narrow table: `name value` pairs, digests cut short."""
    if isinstance(detail, dict):
        text = ", ".join(f"{name} {value}" for name, value in detail.items())
    else:
        text = json.dumps(detail)
    return _DIGEST.sub(lambda match: match[1] + "...", text)
