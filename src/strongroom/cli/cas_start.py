"""`strongroom cas start`: run a CAS until it is told to stop."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from strongroom.cas.log_note import WitnessKey
from strongroom.cas.server import ADDRESS_FILE, prepare
from strongroom.cli import cas_endorsements, output
from strongroom.cli.parser import add_debug
from strongroom.cli.serve import local_url
from strongroom.cli.workspace import Home


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", type=Path, metavar="DIR", help="its state (default: this user's development CAS)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="the port (default: any free one)")
    parser.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="VKEY",
        help="keep this witness's cosignatures of the log's head, and show them; may be given again",
    )
    cas_endorsements.configure(parser)
    add_debug(parser)
    output.add_json(parser)


def run(args: argparse.Namespace, home: Home) -> int:
    directory = args.state or home.path / "cas"
    witnesses = [WitnessKey.parse(vkey) for vkey in args.witness]
    complete = cas_endorsements.completer(args, directory)
    server, address, store = prepare(directory, host=args.host, port=args.port, witnesses=witnesses, complete=complete)
    # A CAS that listens everywhere is shown as this machine reaches it.
    url = local_url(args.host, server.port)
    if args.json:
        output.result({"url": url, "cas_root": address.cas_root, "state": str(directory)})
    else:
        output.stdout.print(f"CAS at {url}\nroot {address.cas_root}", markup=False, soft_wrap=True)
    output.note(f"address written to {directory / ADDRESS_FILE}; Ctrl-C ends it")
    output.warn("its keys lie in files on this machine: run it where its owner trusts the machine")
    sys.stdout.flush()
    try:
        server.run()
    finally:
        store.close()
    return 0
