"""`strongroom vault keys`: who can open a vault."""

from __future__ import annotations

import argparse
import datetime as dt

from rich.table import Table
from rich.text import Text

from strongroom.cas.client.slots import SCHEME, slot_of
from strongroom.cli import output
from strongroom.cli.policy.files import cas_client
from strongroom.cli.secrets import Keeper, NewHolder, new_holder, sealed_vault
from strongroom.cli.workspace import SealedVault
from strongroom.errors import StrongroomError, UsageError, printable
from strongroom.sealed import Root
from strongroom.storage import LocalDirectory
from strongroom.vault.access import changing_ring, create_ring
from strongroom.vault.engine import META
from strongroom.vault.keys import KeyFile, KeyRing, SlotInfo


def keys(args: argparse.Namespace) -> int:
    if args.keys_action == "list":
        return _list(args)
    made: NewHolder | None = None
    before: list[bytes] = []
    sealed = sealed_vault(args.vault, args)
    with sealed.as_it_is().open("r+") as opened:
        at = sealed.anchor.read()
        now = dt.datetime.now(dt.UTC)
        if args.keys_action == "add":
            with changing_ring(opened) as ring:
                made = _make(args)
                label = _free_label(args.label or made.label, ring)
                if ring is not None:
                    ring.add(opened._key, made.holder, label=label, now=now)
            if ring is None:
                ring = create_ring(opened, made.holder, label=label, now=now)
        else:
            with changing_ring(opened) as ring:
                before = _kept_by_cas(ring)
                if ring is None:
                    raise UsageError(f"key slots: {args.vault} has none", hint="`strongroom vault keys add` makes one")
                if args.keys_action == "remove":
                    ring.remove(opened._key, _slot(ring, args.slot), force=args.force)
                else:
                    made = _make(args)
                    opener = sealed.opener()
                    assert not isinstance(opener, bytes)  # noqa: S101  # a file or a secret
                    ring.rotate(opener, made.holder, now=now, label=args.label)  # type: ignore[arg-type]
    assert ring is not None  # noqa: S101  # all three have one
    gone = [data for data in before if data not in _kept_by_cas(ring)]
    for data in gone:
        _forget(args, data)
    named = {args.cas_slot, getattr(args, "new_cas", None), *(slot_of(data)[0] for data in gone)}
    for policy in sorted(name for name in named if name):
        _follow(args, policy, sealed, at)
    _say(args, ring.slots, made)
    return 0


def _kept_by_cas(ring: KeyRing | None) -> list[bytes]:
    return [slot.data for slot in ring.slots if slot.scheme == SCHEME] if ring else []


def _forget(args: argparse.Namespace, data: bytes) -> None:
    """Have the CAS forget the key of a slot that is gone: then copies of the keys file do not open with it either."""
    try:
        Keeper(args).forget(data)
    except StrongroomError as error:
        output.warn(f"the CAS still keeps the key of the slot that is gone: {error.message}")
    else:
        output.note("the CAS has forgotten the slot's key; older copies of the keys file do not open with it either")


def _follow(args: argparse.Namespace, policy: str, sealed: SealedVault, before: Root | None) -> None:
    """Have the CAS's anchor of the vault follow, if it was where the anchor file was before the slots were changed."""
    after = sealed.anchor.read()
    try:
        with cas_client(args) as client:
            for rule in client.policy(policy).vaults:
                if rule.source or after is None or after == before:
                    continue
                anchor = client.anchor(policy, rule.name)
                if anchor.read() == before:
                    anchor.advance(before, after)
                    output.note(f"the CAS's anchor of {rule.name} in {policy} has followed")
    except StrongroomError as error:
        output.warn(
            f"the CAS's anchor in {policy} has not followed: {error.message}; `strongroom cas entrust {policy} NAME "
            f"{args.vault}` has it follow, else enclaves refuse the vault"
        )


def _make(args: argparse.Namespace) -> NewHolder:
    make = new_holder(args)
    assert make is not None  # noqa: S101  # the parser wants one
    return make()


def _free_label(label: str, ring: KeyRing | None) -> str:
    taken = {slot.label for slot in ring.slots} if ring else set()
    found, number = label, 1
    while found in taken:
        number += 1
        found = f"{label} {number}"
    return found


def _slot(ring: KeyRing, text: str) -> int | str:
    labels = {slot.label for slot in ring.slots}
    return int(text) if text not in labels and text.isascii() and text.isdigit() else text


def _say(args: argparse.Namespace, slots: list[SlotInfo], made: NewHolder | None) -> None:
    if args.json:
        output.result([_wire(slot) for slot in slots])
        return
    if made and made.note:
        output.note(made.note)
    if args.keys_action == "remove":
        output.note("whoever took the vault key, or kept a copy of the keys file, can still open copies of the vault")
    if isinstance(made and made.holder, KeyFile):
        output.note("the key file opens the vault; keep it away from the machine that you do not trust")
    _table(slots)


def _list(args: argparse.Namespace) -> int:
    if not (args.vault / META).exists():
        raise UsageError(f"vault: {args.vault} is not one")
    ring = KeyRing.load(LocalDirectory(args.vault))
    slots = ring.slots if ring else []
    if args.json:
        output.result([_wire(slot) for slot in slots])
    elif ring is None:
        output.note(f"{args.vault} has no key slots: its vault key opens it, as a key file")
    else:
        _table(slots)
    return 0


def _wire(slot: SlotInfo) -> dict[str, object]:
    wire: dict[str, object] = {"slot": slot.index, "kind": slot.kind, "label": slot.label}
    wire["created"] = slot.created.isoformat()
    if slot.cost:
        wire |= {"memory_kib": slot.cost.memory, "passes": slot.cost.passes, "lanes": slot.cost.lanes}
    if slot.scheme:
        wire["scheme"] = slot.scheme
    return wire


def _table(slots: list[SlotInfo]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("slot", "kind", "label", "created"):
        table.add_column(name, no_wrap=name != "label", overflow="fold")
    for slot in slots:
        kind = f"{slot.kind} {slot.scheme}" if slot.scheme else slot.kind
        created = slot.created.strftime("%Y-%m-%d %H:%M UTC")
        table.add_row(str(slot.index), kind, Text(printable(slot.label)), created)
    output.stdout.print(table)
