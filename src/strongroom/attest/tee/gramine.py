"""The attester of SGX enclaves under Gramine, and the keys that it takes: the pseudo-files under `/dev/attestation`.

Source: Gramine's documentation, "Attestation and Secret Provisioning", and what libos/src/fs/dev/attestation.c does
beyond it:

- There is no `attestation_type` outside of SGX, and no `quote` where it is ``none``.
- A write to `user_report_data` takes effect at once, whatever its length: it is cut, or filled up with zeros. Opening
  `quote` makes it over what was written last, in any thread: one report at a time.
- A failure of the platform, and a key of another length than 16, are EACCES.
"""

from __future__ import annotations

import errno
import os
import re
import threading

from strongroom.attest.binding import REPORT_DATA_SIZE
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.dcap import parse_quote
from strongroom.attest.parse.dcap_body import SgxReport
from strongroom.attest.tee.system import System, read_whole, write_once
from strongroom.crypto import equal
from strongroom.errors import EnclaveError, FormatError, StrongroomError, UnsupportedPlatformError, UsageError

ATTESTATION = "/dev/attestation"
KEY_SIZE = 16

# Gramine's QUOTE_MAX_SIZE.
MAX_QUOTE = 8 * 1024
_MAX_TEXT = 64
# Gramine keeps names that begin with an underscore for keys of its own.
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_ONE_AT_A_TIME = threading.Lock()


def attestation_type(system: System = os) -> str | None:
    """What the enclave's manifest says in `sgx.remote_attestation`: ``dcap``, or ``none``; None if this process is not
    in an SGX enclave under Gramine.

    Raises:
        EnclaveError: Gramine failed.
    """
    try:
        return read_whole(system, f"{ATTESTATION}/attestation_type", _MAX_TEXT).decode("ascii").strip()
    except UnicodeDecodeError:
        raise EnclaveError(f"{ATTESTATION}/attestation_type: not text") from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise _failed("reading attestation_type", error) from None


class GramineAttester:
    """Evidence of the SGX enclave that this process is. Gramine gives no endorsements; they are Intel's."""

    tee = "sgx"

    def __init__(self, *, system: System = os) -> None:
        """Ask Gramine whether it makes quotes.

        Raises:
            UnsupportedPlatformError: this is no SGX enclave under Gramine, or one without remote attestation by DCAP.
        """
        kind = attestation_type(system)
        if kind is None:
            raise UnsupportedPlatformError(
                "gramine: this process is not in an SGX enclave of its", hint="start it with gramine-sgx"
            )
        if kind != "dcap":
            raise UnsupportedPlatformError(
                f"gramine: got attestation type {kind[:20]!r}, wanted 'dcap'",
                hint='set sgx.remote_attestation = "dcap" in the manifest and sign it again',
            )
        self._system = system

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over `report_data`, 64 bytes.

        Raises:
            UsageError: `report_data` has another length.
            EnclaveError: the quote could not be made, or is over other report data.
            FormatError: Gramine gave something else than a quote.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(f"report data: {len(report_data)} bytes, wanted {REPORT_DATA_SIZE}")
        with _ONE_AT_A_TIME:
            try:
                write_once(self._system, f"{ATTESTATION}/user_report_data", report_data)
                quote = read_whole(self._system, f"{ATTESTATION}/quote", MAX_QUOTE)
            except OSError as error:
                raise _failed("making the quote", error) from None
        parsed = parse_quote(quote)
        if not isinstance(parsed.report, SgxReport):
            raise FormatError("quote: got one of a trust domain, wanted one of an SGX enclave")
        if not equal(parsed.report.report_data, report_data):
            raise EnclaveError(
                "gramine: the quote is over other report data than was written",
                hint=f"nothing else in this process may write to {ATTESTATION}/user_report_data",
            )
        return Evidence("sgx", parsed.raw, b"")

    def __repr__(self) -> str:
        return "GramineAttester()"


def set_key(name: str, key: bytes, *, system: System = os) -> None:
    """Give Gramine the key of the encrypted files that its manifest names `name`.

    Args:
        name: a `key_name` of `fs.mounts`.
        key: 16 bytes.

    Raises:
        UsageError: a name that Gramine keeps for itself, or a key of another length.
        EnclaveError: no such key in the manifest, or this process is not in Gramine.
    """
    if not _KEY_NAME.fullmatch(name):
        raise UsageError(f"key name: got {name[:70]!r}, wanted letters, digits and _ . - after the first")
    if len(key) != KEY_SIZE:
        raise UsageError(f"key {name}: {len(key)} bytes, wanted {KEY_SIZE}")
    try:
        write_once(system, f"{ATTESTATION}/keys/{name}", key)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise EnclaveError(
                f"gramine: no key {name}", hint=f'a mount of type "encrypted" in the manifest needs key_name = "{name}"'
            ) from None
        raise _failed(f"setting key {name}", error) from None


def _failed(doing: str, error: OSError) -> StrongroomError:
    hint = {
        errno.EACCES: "Gramine could not reach the quoting enclave, or its service: is aesmd running on the host?",
        errno.ENOENT: "the manifest's sgx.remote_attestation decides whether there are quotes",
    }.get(error.errno or 0)
    return EnclaveError(f"gramine: {doing} failed: {os.strerror(error.errno or 0).lower()}", hint=hint)
