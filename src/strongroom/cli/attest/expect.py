"""`strongroom attest expect`: what a confidential VM will be measured as, as a policy's table [reference]."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from strongroom.attest.claims import REGISTER_SIZE, registers_measurement
from strongroom.attest.launch_digest import snp_launch_digest
from strongroom.attest.parse.event_log import MAX_LOG_AREA, parse_event_log, replay
from strongroom.attest.parse.launched import PROGRAM_PCR, PROGRAM_RTMR, QUOTED_PCRS, programs
from strongroom.attest.parse.td_log import BANK, parse_td_log, replayed
from strongroom.attest.reference import ANY
from strongroom.attest.words import PLATFORMS
from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.parser import Parser, add_debug
from strongroom.errors import UsageError

_PCR_BANK = "sha256"
_REGISTER = re.compile(rf"[0-9a-f]{{{2 * REGISTER_SIZE}}}")


def configure(parser: Parser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="TEE", required=True)
    snp = kinds.add_parser("snp", help="the launch digest of a VM on AMD SEV-SNP, by the package sev-snp-measure")
    snp.add_argument("--firmware", type=Path, required=True, metavar="FILE", help="its OVMF image")
    snp.add_argument(
        "--vcpus", type=int, action="append", required=True, metavar="N", help="its processors; repeatable"
    )
    snp.add_argument("--vcpu-type", required=True, metavar="MODEL", help="their model by QEMU's name, such as EPYC-v4")
    snp.add_argument("--kernel", type=Path, metavar="FILE", help="of direct boot")
    snp.add_argument("--initrd", type=Path, metavar="FILE")
    snp.add_argument("--append", default="", metavar="TEXT", help="the kernel's command line")
    snp.add_argument("--vmm", default="QEMU", metavar="NAME", help="the hypervisor: QEMU (default), ec2 or gce")
    snp.add_argument("--guest-features", type=_number, default=1, metavar="N", help="SEV_FEATURES (default: 0x1)")
    tdx = kinds.add_parser("tdx", help="the registers of a VM on Intel TDX, by the event log of its boot")
    tdx.add_argument("--event-log", type=Path, required=True, metavar="FILE", help="a copy of the CCEL table's data")
    tdx.add_argument("--mrtd", required=True, metavar="HEX", help="of its firmware, as its maker or a quote says")
    tpm = kinds.add_parser("tpm", help="the registers of a machine with a TPM, by the event log of its boot")
    tpm.add_argument("--event-log", type=Path, required=True, metavar="FILE", help="a copy of binary_bios_measurements")
    for each in (snp, tdx, tpm):
        each.add_argument(
            "--policy",
            type=Path,
            metavar="FILE",
            help="whose program `strongroom run` starts there: then the machine is the platform, and the program what "
            "`measurements` names",
        )
        cas_address.add_root(each)
        add_debug(each)
        output.add_json(each)


def _number(text: str) -> int:
    return int(text, 0)


def run(args: argparse.Namespace) -> int:
    return {"snp": _snp, "tdx": _tdx, "tpm": _tpm}[args.kind](args)


def _snp(args: argparse.Namespace) -> int:
    digests = {
        vcpus: snp_launch_digest(
            args.firmware,
            vcpus=vcpus,
            vcpu_type=args.vcpu_type,
            kernel=args.kernel,
            initrd=args.initrd,
            append=args.append,
            vmm=args.vmm,
            guest_features=args.guest_features,
        ).hex()
        for vcpus in args.vcpus
    }
    if args.kernel is None:
        output.warn("without --kernel only the firmware is measured, and not what it starts")
    lines = [f"# {_count(vcpus, 'processor')}, {args.vcpu_type}, {args.vmm}" for vcpus in digests]
    if args.policy:
        return _platform(args, "snp", {"measurement": list(digests.values())}, lines)
    if args.json:
        output.result({"tee": "snp", "measurements": list(digests.values())})
        return 0
    _print(_lines(lines, "snp", list(digests.values()), {}))
    return 0


def _tdx(args: argparse.Namespace) -> int:
    mrtd = args.mrtd.lower()
    if not _REGISTER.fullmatch(mrtd):
        raise UsageError(f"--mrtd: got {mrtd[:40]!r}, wanted {2 * REGISTER_SIZE} hexadecimal digits")
    events = parse_td_log(_read(args.event_log))
    _refuse_programs(programs(events, PROGRAM_RTMR, BANK), "RTMR3")
    values = {"mrtd": mrtd, **{name: value.hex() for name, value in replayed(events).items()}}
    told = f"# {_count(len(events), 'event')} of the boot"
    if args.policy:
        return _platform(args, "tdx", {name: [values[name]] for name in PLATFORMS["tdx"]}, [told])
    measurement = registers_measurement(values)
    if args.json:
        output.result({"tee": "tdx", "measurements": [measurement], "registers": values})
        return 0
    _print(_lines([told], "tdx", [measurement], {name: values[name] for name in ("mrtd", "rtmr3")}))
    return 0


def _tpm(args: argparse.Namespace) -> int:
    if not args.policy:
        raise UsageError("--policy: wanted one: a TPM's machine is a platform for its program", hint="--policy FILE")
    events = parse_event_log(_read(args.event_log))
    _refuse_programs(programs(events, PROGRAM_PCR, _PCR_BANK), f"PCR {PROGRAM_PCR}")
    values = replay(events, _PCR_BANK)
    pinned = {f"pcr{index}": [value.hex()] for index, value in sorted(values.items()) if index in QUOTED_PCRS}
    pinned.pop(f"pcr{PROGRAM_PCR}", None)
    if missing := [name for name in PLATFORMS["tpm"] if name not in pinned]:
        raise UsageError(f"--event-log: measures nothing into {', '.join(missing)}", hint="take that of a whole boot")
    return _platform(args, "tpm", pinned, [f"# {_count(len(events), 'event')} of the boot"])


def _refuse_programs(found: Sequence[str], where: str) -> None:
    if found:
        raise UsageError(
            f"--event-log: {len(found)} measured into {where} already",
            hint="take that of a boot before anything was launched",
        )


def _platform(args: argparse.Namespace, tee: str, pinned: Mapping[str, Sequence[str]], comments: Sequence[str]) -> int:
    """The machine as a platform, and the program of a policy as what is measured."""
    measurement = _program(args)
    if args.json:
        told = {name: list(values) for name, values in pinned.items()}
        output.result({"tee": tee, "measurements": [measurement], "platform": told})
        return 0
    lines = ["[reference]", f'tees = ["{tee}"]', f"# the program of {args.policy.name}"]
    lines += [f'measurements = ["{measurement}"]']
    lines += [f'other_programs = ["{ANY}"]'] if tee == "snp" else []
    lines += ["", *comments, f"[reference.platforms.{tee}]"]
    for name, values in pinned.items():
        lines.append(f"{name} = [{', '.join(f'{chr(34)}{value}{chr(34)}' for value in values)}]")
    _print(lines)
    return 0


def _program(args: argparse.Namespace) -> str:
    from strongroom.cli.hardware import program_of_policy  # and with it the CAS, which few ask for here
    from strongroom.enclave.digests import Digests
    from strongroom.enclave.measure import measure

    _, config, files = program_of_policy(args.policy, cas_address.root_of(args))
    return measure(config, files, known=Digests()).value


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_LOG_AREA + 1)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        output.stdout.print(line, markup=False, soft_wrap=True, highlight=False)


def _lines(
    comments: Sequence[str], tee: str, measurements: Sequence[str], registers: Mapping[str, str]
) -> Iterator[str]:
    yield "[reference]"
    yield f'tees = ["{tee}"]'
    yield "measurements = ["
    for comment, value in zip((*comments, *[""] * len(measurements)), measurements, strict=False):
        yield from (f"  {line}" for line in (comment, f'"{value}",') if line)
    yield "]"
    if registers:
        yield ""
        yield "[reference.registers]"
        yield from (f'{name} = ["{value}"]' for name, value in registers.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
