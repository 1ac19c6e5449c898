"""`strongroom cas`: run a CAS, and an owner's dealings with one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.policy.version import POLICY_NAME
from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.cas import audit as cas_audit
from strongroom.cli.cas import backup as cas_backup
from strongroom.cli.cas import confirm as cas_confirm
from strongroom.cli.cas import enclaves as cas_enclaves
from strongroom.cli.cas import namespace as cas_namespace
from strongroom.cli.cas import openapi as cas_openapi
from strongroom.cli.cas import reference as cas_reference
from strongroom.cli.cas import restart as cas_restart
from strongroom.cli.cas import restore as cas_restore
from strongroom.cli.cas import revoke as cas_revoke
from strongroom.cli.cas import start as cas_start
from strongroom.cli.cas import status as cas_status
from strongroom.cli.cas import unseal as cas_unseal
from strongroom.cli.cas import verify as cas_verify
from strongroom.cli.cas import witness as cas_witness
from strongroom.cli.cas.audit import print_entries
from strongroom.cli.parser import add_debug
from strongroom.cli.policy.apply import apply
from strongroom.cli.signers import add_caller, caller
from strongroom.cli.workspace import Home, SealedVault, entrust
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    cas_start.configure(actions.add_parser("start", help="run a CAS until it is told to stop"))
    cas_openapi.configure(actions.add_parser("openapi", help="print its API as an OpenAPI document"))
    for name, summary in cas_unseal.ACTIONS.items():
        cas_unseal.configure(actions.add_parser(name, help=summary), name)
    for name, summary in cas_backup.ACTIONS.items():
        cas_backup.configure(actions.add_parser(name, help=summary), name)

    cas_restore.configure_sign(
        actions.add_parser("sign-restore", help="as a policy's owner, sign that a vault's anchor goes back")
    )
    cas_verify.configure(actions.add_parser("verify", help="appraise it by its own evidence, before it is trusted"))
    for name, summary in (
        ("status", "how it is, and who it is"),
        ("root", "print its root's certificate, for TLS clients of published services"),
        ("policies", "list one's policies"),
        ("enclaves", "list the enclaves that live under one's policies"),
        ("revoke", "end enclaves at once"),
        ("namespace", "say who makes policies in a namespace"),
        ("apply", "sign a policy and store it"),
        ("show", "print a policy"),
        ("entrust", "give it the key of a vault or a sealed file, and the root that it has now"),
        ("secret", "store a secret that a policy names, from standard input or a file"),
        ("log", "print the audit log of one's policies"),
        ("audit", "show, verify or export that log with its proofs, offline too"),
        ("witness", "cosign the head of its log, for others to trust"),
        ("confirm", "as an operator, confirm after a start that its database is the latest"),
        ("restart-mode", "show who confirms that, or as an operator vote for another mode"),
    ):
        action = actions.add_parser(name, help=summary)
        cas_address.add(action)
        add_caller(action, "the owner's")
        cas_reference.add(action)
        add_debug(action)
        output.add_json(action)
        if name == "audit":
            cas_audit.configure(action)
        if name == "witness":
            cas_witness.configure(action)
        if name == "confirm":
            cas_confirm.configure(action)
        if name == "restart-mode":
            cas_restart.configure(action)
        if name == "namespace":
            cas_namespace.configure(action)
        if name == "enclaves":
            cas_enclaves.configure(action)
        if name == "revoke":
            cas_revoke.configure(action)
        if name == "apply":
            action.add_argument("policy", type=Path, metavar="FILE")
        if name in ("show", "entrust", "secret"):
            action.add_argument("policy", metavar="NAMESPACE/NAME")
        if name == "entrust":
            action.add_argument("name", metavar="NAME", help="its name in the policy")
            action.add_argument("vault", type=Path, metavar="PATH")
            action.add_argument("--key", type=Path, metavar="FILE", help="its key file (default: PATH.key)")
            cas_restore.configure_entrust(action)
        if name == "secret":
            action.add_argument("name", metavar="NAME", help="the secret's name in the policy")
            action.add_argument(
                "--file", type=Path, metavar="FILE", help="the secret is this file's bytes, all of them"
            )


def run(args: argparse.Namespace) -> int:
    of_policy = args.action in ("show", "entrust", "secret", "revoke") or (args.action == "enclaves" and args.policy)
    if of_policy and not POLICY_NAME.fullmatch(args.policy):
        raise UsageError(
            f"policy: got {args.policy[:200]!r}, wanted namespace/name in lower case",
            hint=f"the name stands in the policy's document; `strongroom cas {args.action} --help` shows the arguments",
        )
    if args.action == "openapi":
        return cas_openapi.run()
    if args.action == "entrust":
        cas_restore.check_arguments(args)
    if args.action == "revoke":
        cas_revoke.check_arguments(args)
    home = Home.open()
    if args.action == "sign-restore":
        return cas_restore.sign(args, home)
    if args.action == "start":
        return cas_start.run(args, home)
    if args.action in cas_unseal.ACTIONS:
        return cas_unseal.run(args, home)
    if args.action in cas_backup.ACTIONS:
        return cas_backup.run(args, home)
    if args.action == "verify":
        return cas_verify.run(args, home)
    if args.action == "audit" and cas_audit.offline(args):
        return cas_audit.run_offline(args, home)
    if args.action == "witness" and args.key_only:
        return cas_witness.run_offline(args)
    with cas_address.cas_of(args, home) as address:
        return _deal(args, address, home)


def _deal(args: argparse.Namespace, address: CasAddress, home: Home) -> int:
    if args.action == "witness":
        return cas_witness.run(args, address.url, address.cas_root)
    owner, token = caller(args, home)
    if args.action == "confirm":
        return cas_confirm.run(args, address, owner or home.owner(), home)
    with home.owner_client(address, owner, token=token, reference=cas_reference.of(args)) as client:
        match args.action:
            case "status":
                own = None if owner is None else owner.public.fingerprint
                mine: dict[str, object] = {"url": address.url, "owner": own}
                mine |= {} if token is None else {"login": client.login(token())}
                cas_status.status(args, client, **mine, simulated_vendor=home.vendor().root_digest)
            case "root":
                pem = client.root_certificate().pem().decode()
                if args.json:
                    output.result({"certificate": pem, "cas": address.url, "cas_root": address.cas_root})
                else:
                    _show(pem)
            case "policies":
                cas_status.policies(args, client)
            case "namespace":
                cas_namespace.run(args, client)
            case "enclaves":
                return cas_enclaves.run(args, client)
            case "revoke":
                return cas_revoke.run(args, client)
            case "apply":
                _print(args, apply(client, args.policy), address)
            case "show":
                policy = client.policy(args.policy)
                if args.json:
                    told = {"policy": policy.name, "version": policy.version, "digest": policy.digest}
                    output.result(told | {"text": policy.text})
                else:
                    _show(policy.text)
            case "entrust":
                policy = client.policy(args.policy)
                rule = policy.vault(args.name) or policy.sealed_file(args.name)
                if rule is None:
                    raise UsageError(
                        f"vault: policy {policy.name} names none called {args.name!r}",
                        hint=f"`strongroom cas show {policy.name}` prints the policy",
                    )
                sealed = SealedVault.at(args.vault, args.key)
                if policy.vault(args.name) and rule.access != "mirror":
                    sealed.key()
                if args.restore and not cas_restore.entrust_restored(args, client, address, policy, sealed, owner):
                    return 0
                entrust(client, policy, {args.name: sealed})
                _print(args, {"policy": policy.name, "vault": args.name, "path": str(args.vault)}, address)
            case "secret":
                client.put_secret(args.policy, args.name, _secret(args))
                _print(args, {"policy": args.policy, "secret": args.name}, address)
            case "log":
                _log(args, client)
            case "restart-mode":
                return cas_restart.run(args, client)
            case "audit":
                return cas_audit.run(args, client, address.cas_root)
    return 0


def _secret(args: argparse.Namespace) -> bytes:
    """A file's bytes as they are; of what is typed or piped in, without the ends of lines at its end."""
    if args.file is not None:
        content: bytes = args.file.read_bytes()
        return _some(content)
    if sys.stdin.isatty():
        output.note("the secret, then Ctrl-D:")
    return _some(sys.stdin.buffer.read().rstrip(b"\n"))


def _some(secret: bytes) -> bytes:
    """Nothing is what a broken pipe leaves, and hardly ever a secret."""
    if not secret:
        output.warn("the secret is empty")
    return secret


def _show(text: str) -> None:
    """A document: byte by byte into a file or a pipe, and to a terminal without what it would act on."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\t\n" else " " for c in text)
    sys.stdout.write(text)


def _print(args: argparse.Namespace, value: dict[str, object], address: CasAddress) -> None:
    if args.json:
        output.result(value | {"cas": address.url, "cas_root": address.cas_root})
        return
    for name, item in (value | {"cas": cas_address.shown(args, address)}).items():
        output.stdout.print(f"{name:16} {item}", markup=False, soft_wrap=True)


def _log(args: argparse.Namespace, client: OwnerClient) -> None:
    entries = client.log()
    if args.json:
        output.result([entry | {"detail": _parsed(entry["detail"])} for entry in entries])
        return
    print_entries(entries)


def _parsed(detail: object) -> object:
    try:
        return json.loads(detail) if isinstance(detail, str) else detail
    except (ValueError, RecursionError):
        return detail
