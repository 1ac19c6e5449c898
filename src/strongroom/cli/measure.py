"""`strongroom measure`: what an enclave's measurement consists of, and why it is not what it was."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from strongroom.cas.client.address import CasAddress
from strongroom.cas.policy.version import Policy, Program, VaultRule
from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.cas import reference as cas_reference
from strongroom.cli.image import add_image, image_of
from strongroom.cli.mirror.directory import mirror_key
from strongroom.cli.policy.files import write_measurement
from strongroom.cli.remembered import known_digests, last_accepted, read_listing, remember_written
from strongroom.cli.run import words as run_words
from strongroom.cli.run.vaults import pairs
from strongroom.cli.run.verb import boot_config, program_of
from strongroom.cli.workspace import Home, read_policy
from strongroom.enclave.config import BootConfig
from strongroom.enclave.distributions import STARTUP, UNOWNED, Oddity
from strongroom.enclave.image import Unpacked
from strongroom.enclave.listing import Listing, differences, explain
from strongroom.enclave.measure import Measurement, measure, odd_files, program_files
from strongroom.errors import EnclaveError, UsageError, printable

_LAST = Path()
_NAME = "dev/measure"
_SHOWN = 20


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "strongroom measure [OPTIONS] --policy FILE\n       strongroom measure [OPTIONS] -- COMMAND ..."
    parser.epilog = (
        "The measurement covers the CAS and the policy's name too: an enclave measured for one CAS is nothing to "
        "another. With --policy it is the value for that policy's `measurements` (which may be missing meanwhile), "
        "with a command that of `strongroom run` with the same words. Example: strongroom measure --policy policy.toml "
        "--diff"
    )
    add_program(parser)
    parser.add_argument("--all", action="store_true", help="list every distribution by itself")
    parser.add_argument(
        "--write", action="store_true", help="put the value into the policy, where `policy init` has left zeros"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write every file and its digest, for --diff")
    parser.add_argument(
        "--diff",
        type=Path,
        nargs="?",
        const=_LAST,
        metavar="FILE",
        help="say what differs from a file that --output wrote (default: from what the CAS accepted last, or from "
        "what --write put in if it has accepted nothing yet)",
    )
    parser.add_argument(
        "--strict-records",
        action="store_true",
        help="refuse an environment with files that are not as their distributions' RECORDs say",
    )
    output.add_json(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments")


def add_program(parser: argparse.ArgumentParser) -> None:
    """The options that say what to measure."""
    parser.add_argument("--policy", type=Path, metavar="FILE", help="what this policy says")
    parser.add_argument(
        "--policy-name",
        metavar="NAMESPACE/NAME",
        help="with a command: for this policy (default: that of `strongroom run`, by the keys of its vaults)",
    )
    run_words.add_measured(parser)
    run_words.add_unmeasured(parser)
    add_image(parser)
    cas_address.add_root(parser)
    cas_reference.add(parser)


@dataclass(frozen=True)
class Measured:
    """What an enclave is launched with, and what that measures."""

    home: Home
    config: BootConfig
    files: Mapping[str, Path]
    measurement: Measurement
    policy: Policy | None


def measured(args: argparse.Namespace) -> Measured:
    """Measure what the options say.

    Raises:
        UsageError: neither a policy nor a command is given, or both; or the policy has no program.
    """
    home = Home.open()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if bool(command or (args.image and not args.policy)) == bool(args.policy):
        raise UsageError("command: give a command after --, or --policy FILE")
    run_words.check(args, command)
    cas_root = cas_address.root_of(args)
    if cas_root:
        output.note(f"measured for the CAS {cas_root}")
    else:
        with home.cas() as address:
            cas_root = address.cas_root
        output.note(f"measured for this user's development CAS, {cas_root}")
    rules: tuple[VaultRule, ...] = ()
    policy: Policy | None = None
    if args.policy:
        policy = read_policy(args.policy, draft=True)
        if policy.program is None:
            raise UsageError(f"policy {policy.name}: says nothing of a program")
        name, program, rules = policy.name, policy.program, policy.vaults
        files = program_files(args.policy.parent, program.files)
        role = policy.role
        image = image_of(args, home, digest=program.image)
    else:
        image = image_of(args, home)
        command, files = program_of(command, args.include, image)
        digest = image.image.digest if image is not None else ""
        environment = dict(pairs(args.env, "--env"))
        program, role = Program.literal(command, sorted(files), environment, digest, args.tool or None), "program"
        name, rules = _name_and_rules(args, command, image)
    address = CasAddress("", cas_root)
    config = boot_config(
        name,
        address,
        program,
        rules,
        role=role,
        policy=policy,
        quiet=args.quiet,
        image=image,
        cas_reference=cas_reference.document_of(args),
    )
    with known_digests(home):
        tree = image.measured() if image is not None else None
        return Measured(home, config, files, measure(config, files, image=tree), policy)


def _name_and_rules(
    args: argparse.Namespace, command: Sequence[str], image: Unpacked | None
) -> tuple[str, tuple[VaultRule, ...]]:
    """The policy of a command and its vaults, as `strongroom run` has them. It would make those that are not there.

    Raises:
        UsageError: vaults are named, and one is not there: its key has a say in the policy's name.
    """
    named = bool(args.data or args.out or args.mirror or args.log)
    if args.policy_name and not named:
        return args.policy_name, ()
    sealed, rules = run_words.vaults(args)
    if args.policy_name:
        return args.policy_name, rules
    keys = []
    for rule in rules:
        vault = sealed[rule.name]
        there = vault.key_path if rule.name == run_words.MIRROR else vault.path
        if there.exists():
            keys.append(mirror_key(vault) if rule.name == run_words.MIRROR else vault.key())
        elif named:
            raise UsageError(
                f"{there}: is not there, and its key has a say in the policy's name",
                hint="`strongroom run` makes it; with --policy-name NAME the keys have no say",
            )
        else:
            output.note(f"measured without vaults: `strongroom run` makes {there}, whose key has a say in the value")
            return _NAME, ()
    return run_words.name(command, image, keys), rules


def run(args: argparse.Namespace) -> int:
    if args.write and not args.policy:
        raise UsageError("--write: puts the value into a policy: give --policy FILE")
    got = measured(args)
    odd = odd_files(got.measurement)
    if args.strict_records and odd:
        raise EnclaveError(
            f"environment: {_count(odd)}, of which {_tell(odd[0])}",
            hint="`strongroom measure` lists them; install those distributions anew, and remove what nobody listed",
        )
    listing = Listing.of(got.measurement, got.config)
    if args.output is not None:
        args.output.write_bytes(listing.to_bytes())
        output.note(f"wrote {args.output}: every measured file and its digest")
    earlier = None
    if args.diff is not None:  # before what is there gives way to what is written
        earlier = last_accepted(got.home, got.config.policy) if args.diff == _LAST else read_listing(args.diff)
    if args.write:
        write_measurement(args.policy, got.measurement.value)
        remember_written(got.home, got.config.policy, listing)
    if earlier is not None:
        return _diff(args, got, earlier, listing)
    if args.json:
        output.result(_to_wire(got.measurement, odd))
    else:
        _show(got.measurement, odd, everything=args.all)
        named = got.policy.reference.measurements if got.policy else ()
        if named and got.measurement.value not in named and not args.write:
            output.note("the policy names another; --diff says what became of the one that was accepted")
    return 0


def _to_wire(measurement: Measurement, odd: Sequence[Oddity]) -> dict[str, object]:
    return {
        "measurement": measurement.value,
        "registers": {name: value.hex() for name, value in measurement.registers.items()},
        "parts": [part.to_wire() for part in measurement.parts],
        "startup": [
            {"file": entry.name, "sha256": entry.sha256.hex()}
            for part in measurement.parts
            if part.name == STARTUP
            for entry in part.entries
        ],
        "not_as_recorded": [{"what": o.kind, "distribution": o.distribution, "file": o.path} for o in odd],
    }


_ALWAYS_SHOWN = (
    "interpreter",
    "strongroom",
    STARTUP,
    UNOWNED,
    "system libraries",
    "command",
    "program",
    "boot configuration",
)


def _show(measurement: Measurement, odd: Sequence[Oddity], *, everything: bool) -> None:
    table = Table(title="what runs in the enclave", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, justify in (("part", "left"), ("files", "right"), ("bytes", "right"), ("digest (SHA-384)", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # both are rich's words
    small = [p for p in measurement.parts if not everything and p.name not in _ALWAYS_SHOWN]
    for part in measurement.parts:
        if part in small:
            continue
        table.add_row(Text(printable(part.name)), f"{part.files:,}", f"{part.size:,}", part.digest.hex()[:24] + "...")
    if small:
        row = (f"{sum(p.files for p in small):,}", f"{sum(p.size for p in small):,}", "--all lists them")
        table.add_row(f"{len(small)} distributions", *row)
    output.stdout.print(table)
    for part in measurement.parts:
        if part.name in (STARTUP, UNOWNED) and part.entries:
            what = "run at every start of Python" if part.name == STARTUP else "of no distribution"
            _say(f"\n{what}:", [f"{entry.name}  {entry.sha256.hex()[:16]}..." for entry in part.entries])
    if odd:
        _say(f"\n{_count(odd)}:", [_tell(each) for each in odd])
    output.stdout.print(f"\nmeasurement {measurement.value}", markup=False, soft_wrap=True)


def _say(title: str, lines: Sequence[str]) -> None:
    output.stdout.print(title, markup=False, soft_wrap=True)
    for line in lines[:_SHOWN]:
        output.stdout.print(f"  {printable(line)}", markup=False, soft_wrap=True)
    if len(lines) > _SHOWN:
        output.stdout.print(f"  and {len(lines) - _SHOWN} more; --json lists them")


def _count(odd: Sequence[Oddity]) -> str:
    return f"{len(odd)} file{'s are' if len(odd) > 1 else ' is'} not as the distributions' RECORDs say"


def _tell(oddity: Oddity) -> str:
    return f"{oddity.kind}: {oddity.path}" + (f" ({oddity.distribution})" if oddity.distribution else "")


def _diff(args: argparse.Namespace, got: Measured, before: Listing, after: Listing) -> int:
    """Say what differs."""
    found = differences(before, after)
    named = got.policy.reference.measurements if got.policy else ()
    if args.json:
        value = {"before": before.measurement, "after": after.measurement, "named_by_policy": list(named)}
        output.result(value | {"differences": [each.to_wire() for each in found]})
        return 0
    if named and before.measurement not in named:
        output.note(f"the policy does not name what is compared with, {before.measurement[:16]}...")
    for each in found:
        for line in explain(each, before, after):
            output.stdout.print(printable(line), markup=False, soft_wrap=True)
    if not found:
        output.stdout.print(f"nothing differs: measurement {after.measurement}", markup=False, soft_wrap=True)
        return 0
    output.stdout.print(f"\nmeasurement {before.measurement}\n     became {after.measurement}", soft_wrap=True)
    if after.measurement in named:
        output.note("the policy names both")
    elif named:
        output.note("if all of this is wanted, put the new value into the policy's `measurements`, as its next version")
    return 0
