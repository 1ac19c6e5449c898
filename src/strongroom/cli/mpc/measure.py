"""`strongroom mpc measure`: what a dealer's enclave will be measured as, and the policy that accepts it."""

from __future__ import annotations

import argparse
from pathlib import Path

from strongroom.cli import output
from strongroom.cli.mpc.dealer import dealer_enclave, dealer_policy, settings_here
from strongroom.cli.mpc.verb import require_torch
from strongroom.cli.remembered import known_digests
from strongroom.cli.workspace import Home
from strongroom.enclave.measure import measure
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "strongroom mpc measure [OPTIONS] SCRIPT [ARGUMENTS]"
    parser.epilog = (
        "Measure where nobody but you has a say: what is measured is this machine's Python environment, the program's "
        "files, its arguments and the settings, which must all be as at the dealer. The policy is for the servers' "
        "--dealer-policy. Example: strongroom mpc measure --output dealer.toml predict.py"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the policy there, instead of printing it")
    parser.add_argument("--vendor-root", metavar="sha256:...", help="of the dealer's machine (default: this one)")
    parser.add_argument("--peers", type=Path, metavar="FILE", help="for the settings that it names")
    parser.add_argument("--settings", default="", metavar="WORDS", help="such as frac=16,bound=15,exact")
    parser.add_argument("--include", action="append", default=[], metavar="FILE", help="another file of the program")
    output.add_json(parser)
    parser.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="SCRIPT", help="the program and its arguments")


def run(args: argparse.Namespace) -> int:
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise UsageError("program: none was given", hint="strongroom mpc measure predict.py")
    require_torch()
    config, files = dealer_enclave(words, settings_here(args), module=args.module, include=args.include)
    home = Home.open()
    with known_digests(home):
        measured = measure(config, files)
    root = args.vendor_root or home.vendor().root_digest
    text = dealer_policy(measured.value, root)
    if args.output is not None:
        args.output.write_text(text)
    if args.json:
        parts = [part.to_wire() for part in measured.parts]
        output.result({"measurement": measured.value, "vendor_root": root, "parts": parts})
    elif args.output is None:
        output.stdout.print(text, markup=False, soft_wrap=True, end="")
    else:
        output.note(f"measurement {measured.value}")
    return 0
