"""`strongroom attest expect`: what a confidential VM will be measured as, as a policy's table [reference]."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from strongroom.attest.claims import REGISTER_SIZE, registers_measurement
from strongroom.attest.launch_digest import snp_launch_digest
from strongroom.attest.parse.event_log import MAX_LOG_AREA
from strongroom.attest.parse.td_log import Extension, extended, extensions, parse_td_log, replayed
from strongroom.cli import cas_address, output
from strongroom.cli.parser import Parser, add_debug
from strongroom.errors import UsageError

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
    tdx.add_argument("--policy", type=Path, metavar="FILE", help="whose program is measured into RTMR3 after that boot")
    cas_address.add_root(tdx)
    for each in (snp, tdx):
        add_debug(each)
        output.add_json(each)


def _number(text: str) -> int:
    return int(text, 0)


def run(args: argparse.Namespace) -> int:
    return _snp(args) if args.kind == "snp" else _tdx(args)


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
    if args.json:
        output.result({"tee": "snp", "measurements": list(digests.values())})
        return 0
    lines = [f"# {_count(vcpus, 'processor')}, {args.vcpu_type}, {args.vmm}" for vcpus in digests]
    _print(lines, "snp", list(digests.values()), {})
    return 0


def _tdx(args: argparse.Namespace) -> int:
    mrtd = args.mrtd.lower()
    if not _REGISTER.fullmatch(mrtd):
        raise UsageError(f"--mrtd: got {mrtd[:40]!r}, wanted {2 * REGISTER_SIZE} hexadecimal digits")
    events = parse_td_log(_read(args.event_log))
    added = _program(args)
    if added and extensions(events):
        raise UsageError(
            "--event-log: has extensions of RTMR3 already", hint="take that of a boot before anything was launched"
        )
    registers = extended(replayed(events), added)
    values = {"mrtd": mrtd, **{name: value.hex() for name, value in registers.items()}}
    measurement = registers_measurement(values)
    if args.json:
        output.result(
            {
                "tee": "tdx",
                "measurements": [measurement],
                "registers": values,
                "extensions": [{"what": each.what, "digest": each.digest.hex()} for each in added],
            }
        )
        return 0
    lines = [f"# {_count(len(events), 'event')} of the boot, and then {_series(added)}"]
    _print(lines, "tdx", [measurement], {name: values[name] for name in ("mrtd", "rtmr3")})
    return 0


def _program(args: argparse.Namespace) -> Sequence[Extension]:
    if args.policy is None:
        return ()
    from strongroom.cli.hardware import program_of_policy  # and with it the CAS, which few ask for here
    from strongroom.enclave.digests import Digests
    from strongroom.enclave.extend import program_extensions
    from strongroom.enclave.measure import measure

    _, config, files = program_of_policy(args.policy, cas_address.root_of(args))
    return program_extensions(measure(config, files, known=Digests()))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_LOG_AREA + 1)


def _print(comments: Sequence[str], tee: str, measurements: Sequence[str], registers: Mapping[str, str]) -> None:
    for line in _lines(comments, tee, measurements, registers):
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


def _series(added: Sequence[Extension]) -> str:
    return " and ".join(f"the {each.what}" for each in added) or "nothing"
