"""What changed between two versions of a policy, in words: what may now be done that could not, and the reverse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from strongroom.attest.reference import ReferenceValues
from strongroom.attest.words import BY_PRODUCT
from strongroom.cas.policy.difference_rules import (
    Change,
    Effect,
    changed_administrators,
    changed_egress,
    changed_files,
    changed_limits,
    changed_mesh,
    changed_paths,
    changed_recipients,
    changed_secrets,
    changed_vaults,
)
from strongroom.cas.policy.owners import Owners
from strongroom.cas.policy.version import Policy, Program
from strongroom.crypto import PublicKey

__all__ = ["Change", "differences"]

Floors = Mapping[str, Mapping[str, int]]


def differences(old: Policy, new: Policy) -> list[Change]:
    """What is another in `new` than in `old`, in the order of the document; version and previous digest apart."""
    return list(_differences(old, new))


def _differences(old: Policy, new: Policy) -> Iterator[Change]:
    for key, before, after in (
        ("policy.name", old.name, new.name),
        ("policy.owner", old.owner, new.owner),
        ("policy.role", old.role, new.role),
    ):
        if before != after:
            yield Change(key, "other", f"was {before}, is {after}")
    yield from changed_limits((old.expires, old.instances, old.lease), (new.expires, new.instances, new.lease))
    if old.purpose != new.purpose:
        was, now = (repr(purpose) if purpose else "not said" for purpose in (old.purpose, new.purpose))
        yield Change("policy.purpose", "other", f"was {was}, is {now}")
    yield from changed_recipients(old.recipients, new.recipients)
    yield from _owners(old.owners, new.owners)
    yield from changed_administrators(old.administrators, new.administrators)
    yield from _reference(old.reference, new.reference, "reference")
    yield from _program(old.program, new.program)
    yield from changed_secrets(old.secrets, new.secrets)
    yield from changed_files(old.files, new.files)
    yield from changed_vaults(old.vaults, new.vaults, "vaults")
    yield from changed_vaults(old.sealed, new.sealed, "sealed")
    yield from changed_paths(old.paths, new.paths)
    yield from changed_mesh(old.mesh, new.mesh)
    yield from changed_egress(old.egress, new.egress)


def _owners(old: Owners | None, new: Owners | None) -> Iterator[Change]:
    if old is None or new is None:
        if new is not None:
            yield Change("owners", "less", f"{new.threshold} of {len(new.keys)} owners must sign")
            for name, key in new.keys.items():
                yield _new_owner(name, key)
        if old is not None:
            yield Change("owners", "more", "no owner need sign; the administrator alone changes the policy")
        return
    for name in sorted({*old.keys, *new.keys}):
        before, after = old.keys.get(name), new.keys.get(name)
        if after is None:
            yield Change(f"owners.keys.{name}", "other", "is no owner any more")
        elif before is None:
            yield _new_owner(name, after)
        elif before != after:
            yield Change(
                f"owners.keys.{name}", "other", f"has another key: was {before.fingerprint}, is {after.fingerprint}"
            )
    if old.threshold != new.threshold:
        effect: Effect = "more" if new.threshold < old.threshold else "less"
        yield Change("owners.threshold", effect, f"was {old.threshold}, is {new.threshold} of {len(new.keys)}")


def _new_owner(name: str, key: PublicKey) -> Change:
    return Change(f"owners.keys.{name}", "other", f"is an owner now, with the key {key.fingerprint}")


def _reference(old: ReferenceValues, new: ReferenceValues, path: str) -> Iterator[Change]:
    for name in ("tees", "measurements", "tcb_statuses", "advisories_allowed", "weaknesses_allowed", "tpm_roots"):
        yield from _accepted(getattr(old, name), getattr(new, name), f"{path}.{name}")
    for name in ("signers", "hardware_ids"):
        yield from _asked(getattr(old, name), getattr(new, name), f"{path}.{name}")
    for name in sorted({*old.registers, *new.registers}):
        yield from _asked(old.registers.get(name), new.registers.get(name), f"{path}.registers.{name}")
    yield from _platforms(old, new, f"{path}.platforms")
    yield from _accepted(old.other_programs, new.other_programs, f"{path}.other_programs")
    for tee in sorted({*old.minimum_tcb, *new.minimum_tcb}):
        needed = tee in BY_PRODUCT
        yield from _floors(old.floors(tee), new.floors(tee), f"{path}.minimum_tcb.{tee}", needed=needed)
    if old.maximum_age != new.maximum_age:
        longer = new.maximum_age is None or (old.maximum_age is not None and new.maximum_age > old.maximum_age)
        was, now = ("any" if age is None else f"{age} s" for age in (old.maximum_age, new.maximum_age))
        yield Change(f"{path}.maximum_age", "more" if longer else "less", f"was {was}, is {now}")
    if old.revocation_required != new.revocation_required:
        yield Change(
            f"{path}.revocation_required",
            "less" if new.revocation_required else "more",
            "certificates count only if they are known not to be revoked"
            if new.revocation_required
            else "certificates count if nobody shows that they are revoked",
        )
    if old.count != new.count:
        more = new.count is None
        was, now = ("any number of devices" if each is None else str(each) for each in (old.count, new.count))
        yield Change(
            f"{path}.count", "more" if more else "less" if old.count is None else "other", f"was {was}, is {now}"
        )
    simulated = (old.allow_simulated, new.allow_simulated)
    if simulated[0] != simulated[1]:
        if simulated[1] is None:
            yield Change(f"{path}.allow_simulated", "less", "simulated ones are not accepted any more")
        else:
            of = f"simulated ones of {simulated[1]} are accepted, which protect nothing"
            yield Change(
                f"{path}.allow_simulated", "more", of + (f"; those of {simulated[0]} are not" if simulated[0] else "")
            )
    if old.devices is not None and new.devices is not None:
        yield from _reference(old.devices, new.devices, f"{path}.devices")
    elif old.devices != new.devices:
        text = "no device may be shown"
        if new.devices is not None:
            count = new.devices.count
            many = "at least one device" if count is None else f"exactly {count} device{'s' if count > 1 else ''}"
            text = f"{many} must be shown, and each must fit"
        yield Change(f"{path}.devices", "other", text)
        if new.devices is not None:
            # All that they may be; how many is told.
            none = ReferenceValues((), (), tcb_statuses=())
            yield from _reference(none, replace(new.devices, count=None), f"{path}.devices")


def _platforms(old: ReferenceValues, new: ReferenceValues, path: str) -> Iterator[Change]:
    """What machines must have booted. With a platform other evidence of that kind counts than without."""
    for tee in sorted({*old.platforms, *new.platforms}):
        before, after = old.platforms.get(tee), new.platforms.get(tee)
        if before is None or after is None:
            told = "programs on such a machine are accepted, and no other evidence of it"
            if after is None:
                told = "programs on such a machine are not accepted any more; other evidence of it is"
            effect: Effect = "other" if tee in old.tees and tee in new.tees else "more" if before is None else "less"
            yield Change(f"{path}.{tee}", effect, told)
            for name, values in (after or {}).items():  # what is not named is not asked for
                yield Change(f"{path}.{tee}.{name}", "other", f"is asked for: {_and(values)}")
            continue
        for name in sorted({*before, *after}):
            yield from _asked(before.get(name), after.get(name), f"{path}.{tee}.{name}")


def _floors(old: Floors, new: Floors, key: str, *, needed: bool) -> Iterator[Change]:
    """The lowest versions, by product; by the empty string of all products.

    Args:
        needed: whether what has none is refused.
    """
    # Of tables by product in place of numbers for all nobody can say whether they accept more: it depends on what
    # products there are.
    mixed = bool(old and new) and ("" in old) != ("" in new)
    for product in sorted({*old, *new}):
        before, after = old.get(product), new.get(product)
        at = f"{key}.{product}" if product else key
        if needed and after is None:
            yield Change(at, "other" if mixed else "less", "is not there any more")
        elif needed and before is None and after is not None:
            versions = ", ".join(f"{name} {version}" for name, version in after.items())
            yield Change(at, "other" if mixed else "more", f"is accepted from {versions} on")
        else:
            before, after = before or {}, after or {}
            for name in sorted({*before, *after}):
                yield from _least(before.get(name), after.get(name), f"{at}.{name}")


def _accepted(old: Iterable[str], new: Iterable[str], key: str) -> Iterator[Change]:
    """What is accepted, if it is named."""
    for value in new:
        if value not in set(old):
            yield Change(key, "more", f"{value} is accepted")
    for value in old:
        if value not in set(new):
            yield Change(key, "less", f"{value} is not accepted any more")


def _asked(old: tuple[str, ...] | None, new: tuple[str, ...] | None, key: str) -> Iterator[Change]:
    """What is asked for only if it is named at all."""
    if old is None and new is not None:
        yield Change(key, "less", f"is asked for: {_and(new)}")
    elif old is not None and new is None:
        yield Change(key, "more", "is not asked for any more")
    elif old is not None and new is not None:
        yield from _accepted(old, new, key)


def _least(old: int | None, new: int | None, key: str) -> Iterator[Change]:
    if old == new:
        return
    lower = new is None or (old is not None and new < old)
    was, now = ("any" if version is None else str(version) for version in (old, new))
    yield Change(key, "more" if lower else "less", f"was {was}, is {now}")


def _program(old: Program | None, new: Program | None) -> Iterator[Change]:
    if old is None or new is None:
        if old is not new:
            yield Change("program", "other", "is named now" if old is None else "is not named any more")
        if new is None:
            return
    if old is None:
        yield Change("program.command", "other", f"is {list(new.command)}")
        old = replace(new, files=(), environment={}, image="", tools=None)
    if old.image != new.image:
        yield Change("program.image", "other", f"was {old.image or 'none'}, is {new.image or 'none'}")
    if old.command != new.command:
        yield Change("program.command", "other", f"was {list(old.command)}, is {list(new.command)}")
    if old.tools != new.tools:
        was, now = ("any program" if tools is None else str(list(tools)) for tools in (old.tools, new.tools))
        wider = new.tools is None or (old.tools is not None and set(old.tools) < set(new.tools))
        narrower = old.tools is None or (new.tools is not None and set(new.tools) < set(old.tools))
        effect: Effect = "more" if wider else "less" if narrower else "other"
        yield Change("program.tools", effect, f"was {was}, is {now}")
    for name in sorted({*old.files, *new.files}):
        if (name in old.files) != (name in new.files):
            yield Change(
                "program.files", "other", f"{name!r} {'belongs to it' if name in new.files else 'is left out'}"
            )
    for name in sorted({*old.environment, *new.environment}):
        before, after = old.environment.get(name), new.environment.get(name)
        if before != after:
            was, now = ("not set" if value is None else repr(value) for value in (before, after))
            yield Change(f"program.environment.{name}", "other", f"was {was}, is {now}")


def _and(names: Iterable[str]) -> str:
    return ", ".join(names)
