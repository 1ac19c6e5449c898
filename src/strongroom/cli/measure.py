"""`strongroom measure`: what an enclave's measurement consists of."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from strongroom.cas.policy import Program, VaultRule
from strongroom.cas.server import CasAddress
from strongroom.cli import output
from strongroom.cli.run import boot_config, program_of
from strongroom.cli.workspace import Home, read_policy
from strongroom.enclave.measure import Measurement, measure, program_files
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "strongroom measure [OPTIONS] --policy FILE\n       strongroom measure [OPTIONS] -- COMMAND ..."
    parser.epilog = (
        "The measurement covers the CAS and the policy's name too: an enclave measured for one CAS is nothing to "
        "another. With --policy it is the value for that policy's `measurements` (which may be missing meanwhile); a "
        "command by itself is measured without vaults."
    )
    parser.add_argument("--policy", type=Path, metavar="FILE", help="measure what this policy says")
    parser.add_argument("--policy-name", default="dev/measure", metavar="NAMESPACE/NAME", help="with a command")
    parser.add_argument("--cas-root", metavar="sha256:...", help="the CAS (default: this user's development CAS)")
    parser.add_argument("--include", action="append", default=[], metavar="FILE", help="another file of the program")
    parser.add_argument("--all", action="store_true", help="list every distribution by itself")
    output.add_json(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments")


def run(args: argparse.Namespace) -> int:
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if bool(command) == bool(args.policy):
        raise UsageError("command: give a command after --, or --policy FILE")
    cas_root = args.cas_root
    if not cas_root:
        with Home.open().cas() as address:
            cas_root = address.cas_root
    rules: tuple[VaultRule, ...] = ()
    if args.policy:
        policy = read_policy(args.policy, draft=True)
        if policy.program is None:
            raise UsageError(f"policy {policy.name}: says nothing of a program")
        name, program, rules = policy.name, policy.program, policy.vaults
        files = program_files(args.policy.parent, program.files)
        role = policy.role
    else:
        output.note("measured without vaults; `strongroom run` shows the value of a run that has them")
        command, files = program_of(command, args.include)
        name, program, role = args.policy_name, Program(tuple(command), tuple(sorted(files))), "program"
    measured = measure(boot_config(name, CasAddress("", cas_root), program, rules, role=role), files)
    if args.json:
        parts = [part.to_wire() for part in measured.parts]
        registers = {name: value.hex() for name, value in measured.registers.items()}
        output.result({"measurement": measured.value, "registers": registers, "parts": parts})
    else:
        _show(measured, everything=args.all)
    return 0


_ALWAYS_SHOWN = ("interpreter", "strongroom", "system libraries", "command", "program", "boot configuration")


def _show(measured: Measurement, *, everything: bool) -> None:
    table = Table(title="what runs in the enclave", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, justify in (("part", "left"), ("files", "right"), ("bytes", "right"), ("digest (SHA-384)", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]  # both are rich's words
    small = [p for p in measured.parts if not everything and p.name not in _ALWAYS_SHOWN]
    for part in measured.parts:
        if part in small:
            continue
        table.add_row(part.name, f"{part.files:,}", f"{part.size:,}", part.digest.hex()[:24] + "...")
    if small:
        row = (f"{sum(p.files for p in small):,}", f"{sum(p.size for p in small):,}", "--all lists them")
        table.add_row(f"{len(small)} distributions", *row)
    output.stdout.print(table)
    output.stdout.print(f"\nmeasurement {measured.value}", markup=False, soft_wrap=True)
