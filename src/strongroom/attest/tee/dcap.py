"""Intel's DCAP structures, written rather than read: what the simulated vendor fills in.

Sources: "Intel SGX PCK Certificate and Certificate Revocation List Profile Specification", section 1.3.5 (the SGX
extension); "Intel TDX DCAP: Quote Generation Library and Quote Verification Library", appendix A.3 (quotes, version 4);
the TCB information (version 3) and quoting-enclave identity (version 2) of Intel's provisioning certification service.
"""

from __future__ import annotations

import datetime as dt
import json
import struct
from collections.abc import Mapping

from strongroom.attest.claims import REGISTERS
from strongroom.attest.parse.dcap import ECDSA_P256, INTEL_QE_VENDOR, TEE_TDX
from strongroom.crypto import digest

SGX_EXTENSION = "1.2.840.113741.1.13.1"

# One platform, always up to date: every component of its TCB has this security version.
SVN = 1
FMSPC = bytes.fromhex("00 00 53 49 4d 00")  # "SIM" in the middle; Intel has no such platform
_PCE_ID = bytes(2)
_COMPONENTS = 16
_QE_ISVSVN = 1
_QE_PRODUCT = 2  # Intel's number for the quoting enclave of TDX
QE_SIGNER = digest(b"strongroom/simulated-quoting-enclave/v1")

# TDATTRIBUTES: SEPT_VE_DISABLE (bit 28), which verifiers insist on, and DEBUG (bit 0).
_SEPT_VE_DISABLE, _DEBUG = 1 << 28, 1
_XFAM = bytes.fromhex("e700060000000000")  # x87, SSE, AVX, AVX-512, PKRU, AMX: an ordinary guest
# SGX ATTRIBUTES of the quoting enclave: INIT, MODE64BIT, PROVISION_KEY; XFRM as an ordinary enclave has it.
_QE_ATTRIBUTES = bytes.fromhex("1500000000000000e700000000000000")
_QE_ATTRIBUTES_WANTED = bytes.fromhex("11000000000000000000000000000000")
_QE_ATTRIBUTES_MASK = bytes.fromhex("fbffffffffffffff0000000000000000")


def pck_extension(ppid: bytes, instance: bytes) -> bytes:
    """The SGX extension of a platform's certificate: who it is and how new its TCB."""
    svns = [_pair(f"2.{i + 1}", _integer(SVN)) for i in range(_COMPONENTS)]
    tcb = _sequence(*svns, _pair("2.17", _integer(SVN)), _pair("2.18", _octets(bytes([SVN]) * _COMPONENTS)))
    return _sequence(
        _pair("1", _octets(ppid)),
        _pair("2", tcb),
        _pair("3", _octets(_PCE_ID)),
        _pair("4", _octets(FMSPC)),
        _pair("5", _der(0x0A, b"\1")),  # SGX type: scalable
        _pair("6", _octets(instance)),
        _pair("7", _sequence(*(_pair(f"7.{i}", _der(0x01, b"\0")) for i in (1, 2, 3)))),
    )


def tcb_info(issued: int, expires: int) -> str:
    """TCB information that finds this platform up to date."""
    levels = [{"svn": SVN}] * _COMPONENTS
    tcb = {"sgxtcbcomponents": levels, "pcesvn": SVN, "tdxtcbcomponents": levels}
    module = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}
    module_levels = [{"tcb": {"isvsvn": SVN}, "tcbDate": _date(issued), "tcbStatus": "UpToDate"}]
    return _json(
        {
            "id": "TDX",
            "version": 3,
            "issueDate": _date(issued),
            "nextUpdate": _date(expires),
            "fmspc": FMSPC.hex().upper(),
            "pceId": _PCE_ID.hex(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": 1,
            "tdxModule": module,
            "tdxModuleIdentities": [{"id": f"TDX_{SVN:02}", **module, "tcbLevels": module_levels}],
            "tcbLevels": [{"tcb": tcb, "tcbDate": _date(issued), "tcbStatus": "UpToDate"}],
        }
    )


def qe_identity(issued: int, expires: int) -> str:
    """The identity of the quoting enclave that `qe_report` describes."""
    level = {"tcb": {"isvsvn": _QE_ISVSVN}, "tcbDate": _date(issued), "tcbStatus": "UpToDate"}
    return _json(
        {
            "id": "TD_QE",
            "version": 2,
            "issueDate": _date(issued),
            "nextUpdate": _date(expires),
            "tcbEvaluationDataNumber": 1,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": _QE_ATTRIBUTES_WANTED.hex().upper(),
            "attributesMask": _QE_ATTRIBUTES_MASK.hex().upper(),
            "mrsigner": QE_SIGNER.hex().upper(),
            "isvprodid": _QE_PRODUCT,
            "tcbLevels": [level],
        }
    )


def qe_report(attestation_key: bytes, authentication: bytes) -> bytes:
    """The quoting enclave's own report, 384 bytes, which vouches for its attestation key (64-byte point)."""
    return b"".join(
        (
            bytes([SVN]) * 16,  # CPUSVN
            bytes(4 + 28),  # MISCSELECT, reserved
            _QE_ATTRIBUTES,
            QE_SIGNER,  # MRENCLAVE; any value, the identity names the signer only
            bytes(32),
            QE_SIGNER,  # MRSIGNER
            bytes(96),
            struct.pack("<HH", _QE_PRODUCT, _QE_ISVSVN),
            bytes(60),
            digest(attestation_key, authentication) + bytes(32),
        )
    )


def td_quote_body(registers: Mapping[str, bytes], report_data: bytes, *, debug: bool) -> bytes:
    """Header and TD report 1.0 of a version 4 quote: the bytes that the attestation key signs."""
    header = struct.pack("<HHI4x16s20x", 4, ECDSA_P256, TEE_TDX, INTEL_QE_VENDOR)
    measured = [registers[name] for name in REGISTERS]
    return b"".join(
        (
            header,
            bytes([SVN, SVN]) + bytes([SVN]) * 14,  # TEE_TCB_SVN
            bytes(48 + 48 + 8),  # MRSEAM, MRSIGNERSEAM, SEAMATTRIBUTES: Intel's own module has zeros in the latter two
            struct.pack("<Q", _SEPT_VE_DISABLE | (_DEBUG if debug else 0)),
            _XFAM,
            measured[0],
            bytes(3 * 48),  # MRCONFIGID, MROWNER, MROWNERCONFIG
            *measured[1:],
            report_data,
        )
    )


def certification(report: bytes, signature: bytes, authentication: bytes, chain: bytes) -> bytes:
    """What follows a quote's signature and attestation key: the quoting enclave's report and the PCK chain."""
    inner = report + signature + struct.pack("<H", len(authentication)) + authentication
    inner += struct.pack("<HI", 5, len(chain)) + chain
    return struct.pack("<HI", 6, len(inner)) + inner


def td_quote(body: bytes, signature: bytes, attestation_key: bytes, certification: bytes) -> bytes:
    """The whole quote."""
    data = signature + attestation_key + certification
    return body + struct.pack("<I", len(data)) + data


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _date(seconds: int) -> str:
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%dT%H:%M:%SZ}"


def _pair(arc: str, value: bytes) -> bytes:
    return _sequence(_oid(f"{SGX_EXTENSION}.{arc}"), value)


def _sequence(*parts: bytes) -> bytes:
    return _der(0x30, b"".join(parts))


def _octets(value: bytes) -> bytes:
    return _der(0x04, value)


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _oid(dotted: str) -> bytes:
    first, second, *arcs = map(int, dotted.split("."))
    encoded = bytearray()
    for arc in (40 * first + second, *arcs):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        encoded += bytes(reversed(groups))
    return _der(0x06, bytes(encoded))


def _der(tag: int, value: bytes) -> bytes:
    """ITU-T X.690: tag, definite length in the fewest bytes, value."""
    size = len(value)
    if size < 0x80:
        return bytes([tag, size]) + value
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + value
