"""`strongroom cas`: run a CAS, and an owner's dealings with one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from strongroom.cas.client import OwnerClient
from strongroom.cas.policy import POLICY_NAME
from strongroom.cas.server import CasAddress
from strongroom.cli import cas_audit, cas_start, cas_witness, output
from strongroom.cli.cas_audit import entry_table
from strongroom.cli.parser import add_debug
from strongroom.cli.policy_apply import apply
from strongroom.cli.workspace import Home, SealedVault, entrust
from strongroom.crypto import SigningKey
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    cas_start.configure(actions.add_parser("start", help="run a CAS until it is told to stop"))

    for name, summary in (
        ("status", "who is it"),
        ("apply", "sign a policy and store it"),
        ("show", "print a policy"),
        ("entrust", "give it a vault's key, and the root that the vault has now"),
        ("secret", "store a secret that a policy names, read from standard input"),
        ("log", "print the audit log of one's policies"),
        ("audit", "show, verify or export that log with its proofs, offline too"),
        ("witness", "cosign the head of its log, for others to trust"),
    ):
        action = actions.add_parser(name, help=summary)
        action.add_argument("--cas", metavar="URL", help="the CAS (default: this user's development CAS)")
        action.add_argument("--cas-root", metavar="sha256:...", help="with --cas: the fingerprint of its root key")
        action.add_argument("--owner", type=Path, metavar="FILE", help="the owner's key (default: this user's)")
        add_debug(action)
        output.add_json(action)
        if name == "audit":
            cas_audit.configure(action)
        if name == "witness":
            cas_witness.configure(action)
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
        return cas_start.run(args, home)
    if args.action == "audit" and cas_audit.offline(args):
        return cas_audit.run_offline(args, home)
    if args.action == "witness" and args.key_only:
        return cas_witness.run_offline(args)
    if bool(args.cas) != bool(args.cas_root):
        raise UsageError(
            "--cas, --cas-root: one is useless without the other",
            hint="give both; `strongroom cas start` prints them",
        )
    if args.cas:
        return _deal(args, CasAddress(args.cas, args.cas_root), home)
    with home.cas() as address:
        return _deal(args, address, home)


def _deal(args: argparse.Namespace, address: CasAddress, home: Home) -> int:
    if args.action == "witness":
        return cas_witness.run(args, address.url, address.cas_root)
    owner = SigningKey.load(args.owner) if args.owner else home.owner()
    with home.owner_client(address, owner) as client:
        match args.action:
            case "status":
                status = client.describe() | {"url": address.url, "owner": owner.public.fingerprint}
                status["simulated_vendor"] = Home.open().vendor().root_digest
                _print(args, status)
            case "apply":
                _print(args, apply(client, args.policy))
            case "show":
                policy = client.policy(args.policy)
                if args.json:
                    told = {"policy": policy.name, "version": policy.version, "digest": policy.digest}
                    output.result(told | {"text": policy.text})
                else:
                    _show(policy.text)
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
            case "audit":
                return cas_audit.run(args, client, address.cas_root)
    return 0


def _show(text: str) -> None:
    """A document: byte by byte into a file or a pipe, and to a terminal without what it would act on."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\t\n" else " " for c in text)
    sys.stdout.write(text)


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
    output.stdout.print(entry_table(entries))
