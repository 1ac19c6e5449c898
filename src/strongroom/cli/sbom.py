"""`strongroom sbom`: what an enclave trusts, as a bill of materials and as a size."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from rich.table import Table

from strongroom.cli import output
from strongroom.cli.measure import add_program, measured
from strongroom.enclave.sbom import COMPARED, components, cyclonedx, sizes
from strongroom.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "strongroom sbom [OPTIONS] --policy FILE\n       strongroom sbom [OPTIONS] -- COMMAND ..."
    parser.epilog = (
        "Lines are those of Python sources that are neither blank nor a comment; compiled code counts in bytes alone. "
        "Example: strongroom sbom --policy policy.toml --output sbom.cdx.json"
    )
    add_program(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write it there as CycloneDX 1.6")
    parser.add_argument("--summary", action="store_true", help="print the size of the trusted computing base")
    output.add_json(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments")


def run(args: argparse.Namespace) -> int:
    summary = args.summary or args.json
    if args.output is None and not summary:
        raise UsageError("sbom: nothing to do", hint="--output FILE writes it, --summary prints its size")
    got = measured(args)
    found = components(got.measurement, platform.python_version())
    if args.output is not None:
        document = cyclonedx(found, got.measurement, got.config)
        args.output.write_text(json.dumps(document, indent=1, ensure_ascii=True) + "\n")
        output.note(f"wrote {args.output}: {len(found)} components, measurement {got.measurement.value[:16]}...")
    if not summary:
        return 0
    rows = sizes(found, got.measurement, got.config)
    if args.json:
        trusted = [{"what": r.what.strip(), "files": r.files, "lines": r.lines, "bytes": r.size} for r in rows]
        compared = [{"what": what, "lines": lines} for what, lines in COMPARED]
        output.result({"measurement": got.measurement.value, "trusted": trusted, "compared": compared})
        return 0
    table = Table(title="the trusted computing base", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("what")
    for name in ("files", "lines", "bytes"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.what, f"{row.files:,}", f"{row.lines:,}", f"{row.size:,}")
    table.add_section()
    for what, lines in COMPARED:
        table.add_row(f"beside it: {what}", "", f"{lines:,}", "")
    output.stdout.print(table)
    return 0
