"""What the verbs of `strongroom attest` read: evidence, endorsements and roots from files, and the time."""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from strongroom.attest.binding import REPORT_DATA_SIZE
from strongroom.attest.files import MAX_FILE, Found, TpmFiles, read_evidence
from strongroom.attest.files.endorsements import certificates_in, read_endorsements
from strongroom.attest.files.tpm import read_key
from strongroom.attest.verify import VENDORS, Anchors
from strongroom.crypto.chains import VendorCertificate
from strongroom.errors import FormatError, UsageError


def add_evidence(parser: argparse.ArgumentParser) -> None:
    """FILE, and the files that belong to it."""
    parser.add_argument("file", metavar="FILE", help="the evidence, in any form that is known; - for standard input")
    parser.add_argument(
        "--endorsements",
        action="append",
        default=[],
        metavar="FILE",
        help="Intel's collateral, certificates or revocation lists, in place of those that the evidence came with",
    )
    parser.add_argument("--device", type=int, metavar="N", help="of a file with several GPUs, this one, from 0 on")
    tpm = parser.add_argument_group("a TPM's quote, as tpm2-tools write it")
    tpm.add_argument("--signature", metavar="FILE", help="what tpm2_quote -s wrote")
    tpm.add_argument(
        "--tpm-key", metavar="FILE", help="the attestation key, which `verify` and `appraise` then trust as it is"
    )
    tpm.add_argument("--pcrs", metavar="FILE", help="the registers: JSON, as tpm2_pcrread, or tpm2_quote -o -F values")
    tpm.add_argument("--event-log", metavar="FILE", help="the firmware's log, to replay")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """What else `verify` is told."""
    parser.add_argument(
        "--root", metavar="FILE", help="trust this certificate (PEM or DER) in place of the vendor's own root"
    )
    parser.add_argument(
        "--at", type=moment, metavar="TIME", help="as of then: 2025-07-04, 2025-07-04T10:16:31Z, or seconds since 1970"
    )


def read(args: argparse.Namespace) -> Found:
    """The evidence that the arguments of `add_evidence` name.

    Raises:
        FormatError: a file is of no form that is known; of endorsements it is named.
        UsageError: a file or a device that this evidence has no use for.
    """
    names = (args.file, args.signature, args.tpm_key, args.pcrs, args.event_log, *args.endorsements)
    if names.count("-") > 1:
        raise UsageError("-: standard input is one file, and was named more than once")
    tpm = TpmFiles(*(_optional(name) for name in (args.signature, args.tpm_key, args.pcrs, args.event_log)))
    found = read_evidence(read_bytes(args.file), tpm_files=tpm, device=args.device)
    if not args.endorsements:
        return found
    files = {name: read_bytes(name) for name in args.endorsements}
    tee = found.evidence.tee
    for name, raw in files.items():
        with naming(name):
            read_endorsements(tee, [raw])
    endorsements = read_endorsements(tee, list(files.values()))
    return Found(replace(found.evidence, endorsements=endorsements), found.form)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Says in errors of what was in a file which file that was."""
    try:
        yield
    except FormatError as error:
        raise type(error)(f"{name}: {error.message}", hint=error.hint) from None


def bound_bytes(args: argparse.Namespace, most: int) -> bytes | None:
    """What --report-data (64 bytes) or --nonce (1 to `most`) says; None if neither is there."""
    if args.report_data is not None:
        data = given_bytes("--report-data", f"hex:{args.report_data}")
        if len(data) != REPORT_DATA_SIZE:
            raise UsageError(f"--report-data: {len(data)} bytes, wanted {REPORT_DATA_SIZE}")
        return data
    if args.nonce is None:
        return None
    nonce = given_bytes("--nonce", args.nonce)
    if not 0 < len(nonce) <= most:
        raise UsageError(f"--nonce: {len(nonce)} bytes, wanted 1 to {most}")
    return nonce


def read_plain(name: str) -> Found:
    """Evidence that needs no other file."""
    return read_evidence(read_bytes(name))


def given_bytes(option: str, text: str) -> bytes:
    """Bytes as a person writes them: text, or ``hex:`` and hexadecimal digits."""
    if not text.startswith("hex:"):
        return text.encode("utf-8", "surrogateescape")  # as the shell gave it
    try:
        return bytes.fromhex(text.removeprefix("hex:"))
    except ValueError:
        raise UsageError(f"{option}: got {text[:40]!r}, wanted hexadecimal digits") from None


def anchors(args: argparse.Namespace, tee: str, named: frozenset[str] = frozenset()) -> Anchors:
    """Whom `verify` trusts: the vendors, but for what --root and --tpm-key say, and whom a policy names by digest."""
    if args.tpm_key and tee != "tpm":
        raise UsageError(f"--tpm-key: the evidence is of {tee}, and not a TPM's")
    keys = (read_key(read_bytes(args.tpm_key)).key,) if args.tpm_key else ()
    trusted = replace(VENDORS, tpm_keys=keys, named=named)
    if args.root is None:
        return trusted
    root = _root(args.root)
    if tee in ("sgx", "tdx", "azure-tdx"):
        return replace(trusted, intel=root)
    if tee in ("snp", "azure-snp"):
        return replace(trusted, amd=dict.fromkeys(VENDORS.amd, root))
    if tee == "tpm":
        return replace(trusted, tpm=(root,))
    if tee == "nitro":
        return replace(trusted, nitro=root)
    return replace(trusted, nvidia=root) if tee == "nvidia" else replace(trusted, simulated=root)


def now(args: argparse.Namespace) -> int:
    """The moment to verify at, in seconds since 1970."""
    return int(time.time()) if args.at is None else int(args.at)


def moment(text: str) -> int:
    """A date, a date and time (UTC unless it says another zone), or seconds since 1970."""
    try:
        if text.isascii() and text.isdigit() and len(text) not in (4, 8):  # 20250704 is a date
            given = dt.datetime.fromtimestamp(int(text), dt.UTC)
        else:
            given = dt.datetime.fromisoformat(text)
        seconds = int((given if given.tzinfo else given.replace(tzinfo=dt.UTC)).timestamp())
        if seconds < 0:
            raise ValueError
        return seconds
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"got {text[:40]!r}, wanted a date, a date and time, or seconds, of 1970 or later"
        ) from None


def read_bytes(name: str, cap: int = MAX_FILE) -> bytes:
    """A file, or standard input, of at most `cap` bytes."""
    if name == "-":
        raw = sys.stdin.buffer.read(cap + 1)
    else:
        with Path(name).open("rb") as file:
            raw = file.read(cap + 1)
    if len(raw) > cap:
        raise UsageError(f"{name}: more than {cap:,} bytes, wanted at most that many")
    return raw


def _optional(name: str | None) -> bytes:
    return read_bytes(name) if name else b""


def _root(name: str) -> VendorCertificate:
    with naming(name):
        certificates = certificates_in(read_bytes(name)).certificates
    if len(certificates) != 1:
        raise UsageError(f"--root: got {len(certificates)} certificates in {name}, wanted one")
    return certificates[0]
