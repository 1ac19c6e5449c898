"""The attester of AWS Nitro enclaves: one request to the Nitro Secure Module, through `/dev/nsm`.

Sources: include/uapi/linux/nsm.h and drivers/misc/nsm.c of Linux (6.8 and newer; Amazon's own kernels before): an ioctl
that takes a request and gives an answer, both CBOR. aws/aws-nitro-enclaves-nsm-api, src/api/mod.rs: what they say.
The module signs whatever it is given; the document holds its certificates, so there are no endorsements.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

from strongroom.attest.binding import REPORT_DATA_SIZE
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.cbor import byte_string, parse_cbor
from strongroom.attest.parse.nitro import parse_nitro
from strongroom.attest.tee.system import System
from strongroom.crypto import equal
from strongroom.errors import EnclaveError, FormatError, StrongroomError, UnsupportedPlatformError, UsageError

DEVICE = "/dev/nsm"
MAX_RESPONSE = 0x3000

Ioctl = Callable[[int, int, bytearray], object]
"""`fcntl.ioctl`, which changes the buffer in place."""


def nsm_is_here(system: System = os) -> bool:
    """Whether this machine has the device at all.

    Raises:
        UnsupportedPlatformError: not for this user.
        EnclaveError: it is there, and does not open.
    """
    try:
        system.close(_open(system))
    except FileNotFoundError:
        return False
    return True


class _Raw(ctypes.Structure):
    """`struct nsm_raw`: address and length of the request, and of the answer."""

    _fields_ = (
        ("request", ctypes.c_uint64),
        ("request_length", ctypes.c_uint64),
        ("response", ctypes.c_uint64),
        ("response_length", ctypes.c_uint64),
    )


# _IOWR(0x0A, 0, struct nsm_raw), as include/uapi/asm-generic/ioctl.h builds numbers on x86-64 and arm64.
IOCTL_RAW = 3 << 30 | ctypes.sizeof(_Raw) << 16 | 0x0A << 8


class NitroAttester:
    """Evidence of the Nitro enclave that this runs in. The 64 bytes of report data travel as `user_data`."""

    tee = "nitro"

    def __init__(self, *, system: System = os, ioctl: Ioctl | None = None) -> None:
        """Look for the device.

        Raises:
            UnsupportedPlatformError: there is none, or not for this user.
        """
        if ioctl is None:
            try:
                from fcntl import ioctl as system_ioctl  # not on Windows
            except ImportError:
                raise UnsupportedPlatformError(f"nitro: this system has no {DEVICE}") from None
            ioctl = system_ioctl
        if not nsm_is_here(system):
            raise UnsupportedPlatformError(
                f"nitro: no {DEVICE}", hint="this is no Nitro enclave, or its kernel lacks the module nsm"
            )
        self._system = system
        self._ioctl = ioctl

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over `report_data`, 64 bytes.

        Raises:
            UsageError: `report_data` has another length.
            EnclaveError: the module failed, or its document is over other report data.
            FormatError: the module gave something else than a document.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(f"report data: {len(report_data)} bytes, wanted {REPORT_DATA_SIZE}")
        # {"Attestation": {"user_data": report_data, "nonce": null, "public_key": null}}
        request = (
            b"\xa1\x6bAttestation\xa3\x69user_data" + byte_string(report_data) + b"\x65nonce\xf6\x6apublic_key\xf6"
        )
        document = _document(self._ask(request))
        if not equal(parse_nitro(document).user_data or b"", report_data):
            raise EnclaveError("nitro: the document is over other report data than was asked for")
        return Evidence("nitro", document, b"")

    def _ask(self, request: bytes) -> bytes:
        asked = ctypes.create_string_buffer(request, len(request))
        answer = ctypes.create_string_buffer(MAX_RESPONSE)
        raw = bytearray(_Raw(ctypes.addressof(asked), len(request), ctypes.addressof(answer), MAX_RESPONSE))
        fd = _open(self._system)
        try:
            self._ioctl(fd, IOCTL_RAW, raw)
        except OSError as error:
            raise _failed("asking", error) from None
        finally:
            self._system.close(fd)
        length = _Raw.from_buffer(raw).response_length
        if not 0 < length <= MAX_RESPONSE:
            raise EnclaveError(f"nitro: an answer of {length} bytes, wanted 1 to {MAX_RESPONSE}")
        return answer.raw[:length]

    def __repr__(self) -> str:
        return "NitroAttester()"


def _open(system: System) -> int:
    try:
        return system.open(DEVICE, os.O_RDWR)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _failed("opening", error) from None


def _document(answer: bytes) -> bytes:
    """The document in the module's answer."""
    match parse_cbor(answer, "answer of the Nitro Secure Module"):
        case {"Attestation": {"document": bytes() as document}}:
            return document
        case {"Error": str() as reason}:
            raise EnclaveError(f"nitro: the module refused: {reason[:40]!r}")
        case _:
            raise FormatError("nitro: the module answered something else than a document or an error")


def _failed(doing: str, error: OSError) -> StrongroomError:
    words = os.strerror(error.errno or 0).lower()
    if error.errno in (errno.EACCES, errno.EPERM):
        return UnsupportedPlatformError(f"nitro: {doing} {DEVICE} failed: {words}", hint="run as root in the enclave")
    hint = "the hypervisor did not answer within two minutes" if error.errno == errno.ETIMEDOUT else None
    return EnclaveError(f"nitro: {doing} {DEVICE} failed: {words}", hint=hint)
