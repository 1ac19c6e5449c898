"""A TPM's quote from the files that tpm2-tools write, and from Confidential Containers' JSON.

`tpm2_quote -m MESSAGE -s SIGNATURE -o REGISTERS -F values` and `tpm2_readpublic -f pem -o KEY` write what
`quote_of_files` takes: a TPMS_ATTEST, a TPMT_SIGNATURE, the registers' values one after another, and the key.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.tpm import DIGEST_SIZES, MAX_PUBLIC, TpmEvidence, TpmQuote, parse_quote
from strongroom.attest.parse.tpm_key import parse_public
from strongroom.crypto.vendor_key import VendorKey
from strongroom.errors import FormatError, printable

MAGIC = b"\xffTCG"
_PEM_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----\s*\Z")
# What `tpm2_pcrread` prints: a bank's name, then a line for each register.
_BANK_LINE = re.compile(r"\s*([a-z0-9_]+)\s*:\s*\Z")
_REGISTER_LINE = re.compile(r"\s*([0-9]{1,2})\s*:\s*(?:0[xX])?([0-9a-fA-F]{40,128})\s*\Z")


@dataclass(frozen=True)
class TpmKey:
    """An attestation key: `public` is its public area, where the file had that; `key` is what verifies."""

    key: VendorKey
    public: bytes = b""


def read_key(raw: bytes) -> TpmKey:
    """A key from PEM or DER (SubjectPublicKeyInfo), or from a public area (TPMT_PUBLIC or TPM2B_PUBLIC).

    Raises:
        FormatError: it is none of them.
    """
    if match := _PEM_KEY.match(raw.lstrip()):
        return TpmKey(VendorKey(_base64("key", b"".join(match[1].split()).decode())))
    if raw[:1] == b"\x30":
        return TpmKey(VendorKey(raw))
    public = raw[2:] if int.from_bytes(raw[:2]) == len(raw) - 2 else raw
    if len(public) > MAX_PUBLIC:
        raise FormatError(f"key: {len(raw)} bytes, wanted a public key in PEM or DER, or a TPM's public area")
    return TpmKey(parse_public(public).key, public)


def quote_of_files(
    message: bytes, signature: bytes, key: TpmKey, registers: bytes, *, event_log: bytes = b""
) -> Evidence:
    """Evidence of kind `tpm` from what tpm2-tools wrote.

    Args:
        message: a TPMS_ATTEST, or a TPM2B_ATTEST, which has its length before it.
        signature: a TPMT_SIGNATURE.
        key: the attestation key.
        registers: the quoted ones: as JSON (``{"sha256": {"10": "<hex>"}}``), as `tpm2_pcrread` prints them, or as
            their values one after another.
        event_log: the firmware's, if it is to be replayed.

    Raises:
        FormatError: one of them is not that.
    """
    message = without_length(message)
    quote = parse_quote(message)
    pcrs = _registers(registers, quote)
    spki = b"" if key.public else key.key.spki
    shown = TpmEvidence(message, signature, pcrs, public=key.public, spki=spki, event_log=event_log)
    return Evidence("tpm", shown.to_bytes(), b"")


def from_coco(document: Mapping[str, Any]) -> Evidence:
    """Confidential Containers' evidence of a TPM: `ak_public`, and `tpm_quote` of message, signature and pcrs.

    Raises:
        FormatError: it is not that.
    """
    shown = document.get("tpm_quote")
    if not isinstance(shown, Mapping) or not isinstance(shown.get("pcrs"), list):
        raise FormatError("coco evidence: wanted an object tpm_quote, with a list of pcrs")
    message = without_length(_base64("message", shown.get("message")))
    quote = parse_quote(message)
    if len(quote.selection) != 1:
        raise FormatError(f"coco evidence: {len(quote.selection)} banks are quoted, wanted one")
    ((bank, indices),) = quote.selection.items()
    values = _listed(bank, indices, shown["pcrs"])
    key = read_key(_base64("ak_public", document.get("ak_public")))
    event_log = document.get("event_log", document.get("eventlog"))
    evidence = TpmEvidence(
        message,
        _base64("signature", shown.get("signature")),
        {bank: values},
        public=key.public,
        spki=b"" if key.public else key.key.spki,
        event_log=_base64("event_log", event_log) if event_log else b"",
    )
    return Evidence("tpm", evidence.to_bytes(), b"")


def bare_quote(raw: bytes) -> TpmQuote | None:
    """What a TPMS_ATTEST or TPM2B_ATTEST alone says; None if it is something else.

    Raises:
        FormatError: it starts like one, and does not parse.
    """
    message = without_length(raw)
    return parse_quote(message) if message.startswith(MAGIC) else None


def without_length(message: bytes) -> bytes:
    """A TPMS_ATTEST, also from a TPM2B_ATTEST."""
    wrapped = message[2:6] == MAGIC and int.from_bytes(message[:2]) == len(message) - 2
    return message[2:] if wrapped else message


def _listed(bank: str, indices: Sequence[int], listed: list[Any]) -> dict[int, bytes]:
    """The quoted registers of a list of them, or of all registers in their order."""
    values = [_hex("pcrs", each) for each in listed[:33]]
    if len(values) == len(indices):
        return dict(zip(indices, values, strict=True))
    if len(values) > max(indices, default=0):
        return {index: values[index] for index in indices}
    raise FormatError(f"coco evidence: {len(values)} pcrs, wanted the {len(indices)} of bank {bank} that are quoted")


def _registers(raw: bytes, quote: TpmQuote) -> dict[str, dict[int, bytes]]:
    """The quoted registers, in the order in which they were digested."""
    given = _named(raw, quote)
    if given is None:
        return _one_after_another(raw, quote)
    pcrs: dict[str, dict[int, bytes]] = {}
    for bank, indices in quote.selection.items():
        missing = [str(index) for index in indices if index not in given.get(bank, {})]
        if missing:
            raise FormatError(f"registers: {bank}:{','.join(missing)[:80]} is quoted, and not among them")
        pcrs[bank] = {index: given[bank][index] for index in indices}
    return pcrs


def _named(raw: bytes, quote: TpmQuote) -> dict[str, dict[int, bytes]] | None:
    """Registers by bank and index, from text; None if it is none."""
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        return None
    if text.lstrip().startswith("{"):
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise FormatError("registers: looks like JSON, and does not parse") from None
        if isinstance(document.get("pcrs"), dict):
            document = {str(document.get("bank", next(iter(quote.selection), ""))): document["pcrs"]}
        return {
            bank: {
                int(index): _hex(printable(f"{bank}:{index}"[:80]), value)
                for index, value in values.items()
                if _is_index(index)
            }
            for bank, values in document.items()
            if isinstance(values, dict)
        }
    pcrs: dict[str, dict[int, bytes]] = {}
    bank = ""
    for line in text.splitlines():
        if match := _REGISTER_LINE.match(line):
            pcrs.setdefault(bank, {})[int(match[1])] = _hex(f"{bank}:{match[1]}", match[2])
        elif match := _BANK_LINE.match(line):
            bank = match[1]
    return pcrs or None


def _one_after_another(raw: bytes, quote: TpmQuote) -> dict[str, dict[int, bytes]]:
    wanted = sum(DIGEST_SIZES[bank] * len(indices) for bank, indices in quote.selection.items())
    if len(raw) != wanted:
        raise FormatError(
            f"registers: {len(raw)} bytes, wanted {wanted}: the values of the quoted registers, JSON, or what "
            "tpm2_pcrread prints",
            hint="`tpm2_quote -o FILE -F values` writes them",
        )
    pcrs: dict[str, dict[int, bytes]] = {}
    start = 0
    for bank, indices in quote.selection.items():
        pcrs[bank] = {}
        for index in indices:
            pcrs[bank][index] = raw[start : start + DIGEST_SIZES[bank]]
            start += DIGEST_SIZES[bank]
    return pcrs


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 2


def _hex(name: str, value: object) -> bytes:
    try:
        return bytes.fromhex(value.removeprefix("0x")) if isinstance(value, str) else b""
    except ValueError:
        raise FormatError(f"{name}: wanted hexadecimal digits") from None


def _base64(name: str, value: object) -> bytes:
    try:
        return base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        raise FormatError(f"{name}: not base64") from None
