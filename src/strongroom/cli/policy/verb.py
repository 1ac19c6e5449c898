"""`strongroom policy`: write, check, sign, compare and apply the document that says what may run."""

from __future__ import annotations

import argparse
from typing import Final

from strongroom.cli import actions
from strongroom.cli.parser import Parser

# What each action is, and an example. Its module is `cli/policy_ACTION.py`, which offers what a verb's does.
ACTIONS: Final = {
    "init": ("write a commented document for a command, to start from", "init -- python train.py /data /out"),
    "check": ("say everything that is wrong with a document, by line and key", "check policy.toml"),
    "key": ("print a key as a document's `[owners.keys]` takes it, and make it if it does not exist", "key alice.key"),
    "sign": ("add an owner's signature to those beside a document", "sign policy.toml --key alice.key"),
    "diff": ("say in words what changed between two versions", "diff old.toml policy.toml"),
    "apply": ("store a document and its signatures in a CAS", "apply policy.toml"),
    "request": ("ask another policy's people for what a document imports", "request train.toml > request.json"),
    "approve": ("look at a request, sign it, and store the grant", "approve request.json --expires 2027-06-30"),
    "grants": ("list what a policy's people let others import", "grants hospital/records"),
    "withdraw": ("end a grant at once", "withdraw hospital/records acme/train"),
    "history": (
        "fetch a policy's versions from a CAS, and check that each follows the one before",
        "history acme/train",
    ),
    "schema": ("print the JSON Schema of the document", "schema > policy.schema.json"),
}


def configure(parser: Parser) -> None:
    actions.configure(parser, "policy", ACTIONS)


def run(args: argparse.Namespace) -> int:
    return actions.run(args, "policy")
