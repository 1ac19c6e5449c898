"""`strongroom cas witness`: cosign the head of a CAS's log, once or again and again."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.files import replace
from strongroom.cas.log.head import Head, HeadMemory
from strongroom.cas.log.note import Checkpoint, Note
from strongroom.cas.log.witness import Witness
from strongroom.cli import output
from strongroom.cli.cas import reference as cas_reference
from strongroom.errors import CasUnreachableError, ChannelError, ConflictError, UnauthorizedError, UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options besides those that all dealings with a CAS have."""
    parser.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="the witness's key and what it cosigned"
    )
    parser.add_argument("--name", help="of a new witness, such as witness.example.com/w1")
    parser.add_argument("--key-only", action="store_true", help="print the witness's key, and ask no CAS")
    parser.add_argument("--every", type=int, metavar="SECONDS", help="go on until Ctrl-C (default: cosign once)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the cosigned head here too")


def run_offline(args: argparse.Namespace) -> int:
    """Print the key alone."""
    witness = Witness(args.state, name=args.name)
    _tell(args, {"witness": witness.key.name, "key": str(witness.key)})
    return 0


def run(args: argparse.Namespace, url: str, cas_root: str) -> int:
    """Cosign what the CAS at `url` shows."""
    if args.every is not None and args.every < 1:
        raise UsageError(f"--every: got {args.every}, wanted at least 1 second")
    witness, reference = Witness(args.state, name=args.name), cas_reference.of(args)
    while True:
        try:
            heads = _Cosigned(witness, cas_root)
            with OwnerClient(url, cas_root=cas_root, heads=heads, reference=reference) as client:
                note = cosign_head(witness, client, cas_root, now=int(time.time()))
                _deliver(args, client, witness, note)
        except (CasUnreachableError, ChannelError) as error:
            if args.every is None:
                raise
            output.warn(f"{error.message}; trying again")
        if args.every is None:
            return 0
        time.sleep(args.every)


class _Cosigned(HeadMemory):
    """What the witness has cosigned is what it has seen."""

    hint = None

    def __init__(self, witness: Witness, cas_root: str) -> None:
        self._witness, self._cas_root = witness, cas_root

    def read(self) -> Head:
        return self._witness.last(self._cas_root)

    def advance(self, head: Head) -> None:
        """Only cosigning advances it."""


def cosign_head(witness: Witness, client: OwnerClient, cas_root: str, *, now: int) -> Note:
    """Get a CAS's head with the proof that it extends what the witness cosigned last, and cosign it.

    Raises:
        RollbackError: it does not extend that.
        VerificationError: it is not signed by that CAS.
    """
    for _ in range(3):  # while other processes use the same state
        last = witness.last(cas_root)
        note, key, _ = client.log_head()
        size = Checkpoint.parse(note.text).size
        proof = client.log_consistency(last.size, size) if 0 < last.size < size else ()
        try:
            return witness.cosign(note, cas_root, key, last=last, proof=proof, now=now)
        except ConflictError as error:
            conflict = error
    raise conflict


def _deliver(args: argparse.Namespace, client: OwnerClient, witness: Witness, note: Note) -> None:
    if args.out:
        replace(args.out, str(note).encode())
    checkpoint = Checkpoint.parse(note.text)
    try:
        client.put_cosigned(note)
        kept = True
    except UnauthorizedError as error:
        kept = False
        output.warn(f"{error.message}; {error.hint}")
    said = {"witness": witness.key.name, "key": str(witness.key), "size": checkpoint.size}
    _tell(args, said | {"root": checkpoint.root.hex(), "kept": kept})


def _tell(args: argparse.Namespace, value: dict[str, object]) -> None:
    if args.json:
        output.result(value)
        return
    for name, item in value.items():
        output.stdout.print(f"{name:16} {item}", markup=False, soft_wrap=True)
