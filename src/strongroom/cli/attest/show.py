"""`strongroom attest show`: what evidence says, field by field. Nobody has verified any of it."""

from __future__ import annotations

import argparse

from strongroom.attest.explain import Field, Section, explain
from strongroom.attest.explain.tpm import quote_section
from strongroom.attest.files.tpm import bare_quote
from strongroom.cli import output
from strongroom.cli.attest.reading import add_evidence, read, read_bytes
from strongroom.cli.attest.words import heading, octets, table

UNVERIFIED = "not verified: anybody can write such a file; `strongroom attest verify` says who vouches for it"


def configure(parser: argparse.ArgumentParser) -> None:
    add_evidence(parser)
    parser.add_argument("--full", action="store_true", help="every byte of every field")
    output.add_json(parser)


def run(args: argparse.Namespace) -> int:
    tee, form, sections = _explained(args)
    if args.json:
        told = {"verified": False, "tee": tee, "form": form}
        output.result(told | {"sections": [_wire(section) for section in sections]})
        return 0
    output.warn(UNVERIFIED)
    if tee == "simulated":
        output.warn(output.SIMULATED_BANNER)
    output.stdout.print(f"{tee} evidence: {form}", markup=False, soft_wrap=True)
    for section in sections:
        heading(section.title, section.note)
        table([_row(field, full=args.full) for field in section.fields])
    return 0


def _explained(args: argparse.Namespace) -> tuple[str, str, tuple[Section, ...]]:
    """Kind and form of the evidence, and what it says. A TPM's quote needs no other files to be shown."""
    if not (args.signature or args.tpm_key or args.pcrs or args.event_log):
        alone = bare_quote(read_bytes(args.file)) if args.file != "-" else None
        if alone is not None:
            return "tpm", "TPM quote, without signature, key and registers", (quote_section(alone),)
    found = read(args)
    return found.evidence.tee, found.form, explain(found.evidence)


def _row(field: Field, *, full: bool) -> tuple[str, str, str]:
    value = octets(field.value, full=full) if isinstance(field.value, bytes) else str(field.value)
    return field.name, value, field.meaning


def _wire(section: Section) -> dict[str, object]:
    fields = [
        {
            "name": each.name,
            "value": each.value.hex() if isinstance(each.value, bytes) else each.value,
            "meaning": each.meaning,
        }
        for each in section.fields
    ]
    return {"title": section.title, "note": section.note, "fields": fields}
