"""`strongroom policy diff`: in words, what changed between two versions of a policy."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.cas.policy.difference import differences
from strongroom.cas.policy.version import Policy
from strongroom.cli import output
from strongroom.cli.policy.files import add_cas, cas_client, shown
from strongroom.cli.workspace import read_policy
from strongroom.errors import UsageError

_SIGNS = {"more": "+", "less": "-", "other": "~"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "strongroom policy diff [OPTIONS] OLD NEW\n       strongroom policy diff [OPTIONS] FILE"
    parser.add_argument("old", type=Path, metavar="OLD", help="a document; by itself it is compared with the CAS's")
    parser.add_argument("new", type=Path, nargs="?", metavar="NEW", help="the other one")
    add_cas(parser)
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.new is not None:
        if args.cas:
            raise UsageError("--cas: two files are compared without one", hint="give one file to compare with the CAS")
        old, new = read_policy(args.old), read_policy(args.new)
    else:
        new = read_policy(args.old)
        with cas_client(args) as client:
            old = client.policy(new.name)
    changes = differences(old, new)
    if args.json:
        wire = [{"key": each.key, "effect": each.effect, "text": each.text} for each in changes]
        output.result({"old": _wire(old), "new": _wire(new), "changes": wire})
        return 0
    output.stdout.print(_heading(old, new), markup=False, soft_wrap=True)
    for each in changes:
        output.stdout.print(f"{_SIGNS[each.effect]} {shown(each)}", markup=False, soft_wrap=True)
    if not changes:
        same = old.text == new.text
        words = "the documents are the same" if same else "nothing changed in meaning"
        output.stdout.print(words, markup=False, soft_wrap=True)
    return 0


def _wire(policy: Policy) -> dict[str, object]:
    return {"policy": policy.name, "version": policy.version, "digest": policy.digest}


def _heading(old: Policy, new: Policy) -> str:
    text = f"{new.name}: version {old.version} -> {new.version}"
    if new.version == old.version + 1 and new.previous != old.digest:
        text += f"; but it follows {new.previous or 'none'}, not {old.digest}"
    return text
