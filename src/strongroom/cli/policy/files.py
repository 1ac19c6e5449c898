"""What the actions of `strongroom policy` share: a document's signatures beside it, a CAS to talk to, and names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strongroom.cas.client.address import CasAddress
from strongroom.cas.client.owner import OwnerClient
from strongroom.cas.policy.difference import Change
from strongroom.cas.policy.owners import Owners, OwnerSignature, SignatureFile
from strongroom.cas.policy.version import POLICY_NAME, Policy, parse_policy
from strongroom.cli import output
from strongroom.cli.cas import address as cas_address
from strongroom.cli.cas import reference as cas_reference
from strongroom.cli.signers import add_caller, caller
from strongroom.cli.workspace import Home
from strongroom.errors import FormatError, UsageError, printable

_LONG = re.compile(r"([0-9a-f]{16})[0-9a-f]{48,}")
_DIGESTS = re.compile(r"reference\.(devices\.)?(measurements|signers|tpm_roots|allow_simulated)")


def add_cas(parser: argparse.ArgumentParser) -> None:
    """Give an action that talks to a CAS the arguments that say to which, and as whom."""
    cas_address.add(parser)
    cas_reference.add(parser)
    add_caller(parser)


@contextmanager
def cas_client(args: argparse.Namespace) -> Iterator[OwnerClient]:
    """A client of the CAS that the arguments of `add_cas` name."""
    with cas_and_client(args) as (_, client):
        yield client


@contextmanager
def cas_and_client(args: argparse.Namespace) -> Iterator[tuple[CasAddress, OwnerClient]]:
    """That CAS too."""
    cas_address.named(args)  # what is wrong with the arguments is said first
    home = Home.open()
    owner, token = caller(args, home)
    reference = cas_reference.of(args)
    with (
        cas_address.cas_of(args, home) as address,
        home.owner_client(address, owner, token=token, reference=reference) as client,
    ):
        yield address, client


def check_name(name: str) -> str:
    """Raises UsageError unless it is a policy's name."""
    if not POLICY_NAME.fullmatch(name):
        raise UsageError(
            f"policy: got {name[:200]!r}, wanted namespace/name in lower case",
            hint="the name stands in the policy's document",
        )
    return name


def add_signatures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--signatures", type=Path, metavar="FILE", help="its owners' signatures (default: FILE.signatures)"
    )


def signatures_path(document: Path, given: Path | None) -> Path:
    return given or document.with_name(document.name + ".signatures")


def read_signature_file(path: Path) -> SignatureFile:
    """Raises FormatError."""
    try:
        return SignatureFile.parse(path.read_text("utf-8"))
    except UnicodeDecodeError:
        raise FormatError(f"signatures: {path} is not UTF-8 text") from None


def signatures_of(policy: Policy, document: Path, given: Path | None) -> tuple[OwnerSignature, ...]:
    """The signatures beside a document; none where there is no such file and none was named.

    Raises:
        VerificationError: they are of another document.
        FormatError: the file is malformed.
    """
    path = signatures_path(document, given)
    if given is None and not path.exists():
        return ()
    read = read_signature_file(path)
    read.check_of(policy.name, policy.version, policy.digest)
    return read.signatures


def warn_of_zeros(policy: Policy, document: Path) -> None:
    """Say so if a document has measurements that stand for none: nothing attests under them."""
    if any(not value.strip("0") for value in policy.reference.measurements):
        output.warn(f"reference.measurements: zeros; `strongroom measure --policy {document} --write` puts it there")


def write_measurement(document: Path, value: str) -> None:
    """Put a measurement in the place of the zeros that stand for none in a document, and leave the rest as it is.

    Raises:
        UsageError: it has no such zeros, and does not name this one: what else it accepts is for people to change.
    """
    text = document.read_text("utf-8")
    zeros = f'"{"00" * (len(value) // 2)}"'
    written = text.replace(zeros, f'"{value}"')
    if text.count(zeros) == 1 and value in parse_policy(written, draft=True).reference.measurements:
        document.write_text(written, "utf-8")
        output.note(f"written to {document}")
    elif value in parse_policy(text, draft=True).reference.measurements:
        output.note(f"{document} names it already")
    else:
        raise UsageError(
            f"--write: {document} has no measurement of zeros, got {value}",
            hint="put it into `measurements` by hand, as the policy's next version if it was applied",
        )


def signers(owners: Owners | None, signatures: tuple[OwnerSignature, ...]) -> tuple[list[str], list[str]]:
    """Which owners have signed, and which not yet."""
    keys = {one.key for one in signatures}
    named = {} if owners is None else owners.keys
    signed = [name for name, key in named.items() if key.fingerprint in keys]
    return signed, [name for name in named if name not in signed]


def shown(change: Change) -> str:
    """A change for a person's terminal. Digests are cut short where they are ones that nobody chooses: whatever else
    may hold hexadecimal digits is shown as it is, as are owners' keys, which people compare."""
    text = _LONG.sub(lambda match: match[1] + "...", change.text) if _DIGESTS.fullmatch(change.key) else change.text
    return printable(f"{change.key}: {text}")


def show(values: dict[str, object]) -> None:
    """Names and values, a line each."""
    for name, value in values.items():
        shown = ", ".join(map(str, value)) or "nobody" if isinstance(value, list) else value
        output.stdout.print(f"{name:16} {shown}", markup=False, soft_wrap=True)
