"""Evidence from a TPM 2.0: a quote of its registers by an attestation key that never leaves it.

The attestation key is a primary key of the endorsement hierarchy: the TPM makes the same one anew from its own seed
whenever it is asked, so that nothing is stored anywhere and an enrolment lasts until the TPM is cleared. It is P-256,
which signs several times faster than RSA on most TPMs.

Which TPM: the argument, else the environment's STRONGROOM_TPM, else ``device:/dev/tpmrm0``; as tpm2-tss names them
(`Tss2_TctiLdr_Initialize`), so that ``swtpm:path=SOCKET`` is a software TPM. A bare path is a device. The environment's
STRONGROOM_TPM_LOG names the firmware's event log of another TPM than the machine's own.

`tpm2_pytss` is imported on first use: it takes time to load and headers to build.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from strongroom.attest.binding import REPORT_DATA_SIZE, bound_data
from strongroom.attest.enrolment import Challenge, EnrolmentRequest
from strongroom.attest.evidence import Evidence
from strongroom.attest.parse.endorsements import Endorsements
from strongroom.attest.parse.tpm import MAX_EVENT_LOG, TpmEvidence, parse_quote
from strongroom.attest.verify.tpm import check_event_log, check_pcrs
from strongroom.crypto.chains import VendorCertificate
from strongroom.crypto.linking import keep_to_their_own
from strongroom.errors import (
    EnclaveError,
    FormatError,
    MissingDependencyError,
    UnsupportedPlatformError,
    UsageError,
    VerificationError,
)

VARIABLE = "STRONGROOM_TPM"
LOG_VARIABLE = "STRONGROOM_TPM_LOG"
DEFAULT = "device:/dev/tpmrm0"
EVENT_LOG = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
# Firmware, its configuration, the boot loader, Secure Boot, and what GRUB measures. From 10 on, registers change while
# the system runs (IMA, systemd), and no log of the firmware's replays to them.
BOOT_PCRS = tuple(range(10))

# TCG EK Credential Profile, version 2.5, appendix B, by tpm2_pytss's names, in the order in which they are tried: P-256
# first, as it is the fastest.
EK_KINDS = ("EK-ECC256", "EK-RSA2048", "EK-HIGH-ECC256", "EK-HIGH-ECC384", "EK-HIGH-RSA2048")
_AK_TEMPLATE = "ecc_nist_p256:ecdsa-sha256:null"
_AK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
_EXTENDABLE = ("sha1", "sha256", "sha384", "sha512")
_MAX_CERTIFICATE = 16 * 1024
# Between reading the registers and quoting them, something may extend one.
_ATTEMPTS = 5


@dataclass(frozen=True)
class EndorsementKey:
    """A TPM's own key: its public area (TPMT_PUBLIC), and the certificate that the maker left with it, if any (DER)."""

    public: bytes = field(repr=False)
    certificate: bytes | None = field(repr=False)


class Tpm:
    """A TPM 2.0, opened. One at a time uses it; `close` it, or use it in a ``with`` statement.

    Every method raises EnclaveError if the TPM refuses.
    """

    def __init__(self, esapi: Any, library: Any, kinds: tuple[str, ...]) -> None:
        self._esapi, self._library, self._kinds = esapi, library, kinds
        self._lock = threading.RLock()
        self._ak: tuple[Any, bytes] | None = None

    @classmethod
    def open(cls, where: str | None = None, *, kinds: tuple[str, ...] = EK_KINDS) -> Tpm:
        """Connect to a TPM; the top of this file says to which.

        Args:
            where: overrides the environment.
            kinds: of endorsement keys to look for, from `EK_KINDS`, in that order.

        Raises:
            MissingDependencyError: tpm2-pytss, or a library under it, is not installed.
            UnsupportedPlatformError: nothing answers there.
        """
        where = where or tpm_name()
        where = f"device:{where}" if where.startswith("/") else where
        library = _library()
        try:
            esapi = library.ESAPI(where)
        except (library.TSS2_Exception, RuntimeError, ValueError) as error:
            raise UnsupportedPlatformError(
                f"tpm: cannot open {where[:200]}: {error}",
                hint=f"name another in {VARIABLE}, or get access to the device: on most systems, the group tss has it",
            ) from None
        return cls(esapi, library, kinds)

    def close(self) -> None:
        """Forget the keys in the TPM and disconnect."""
        with self._lock:
            if self._ak is not None:
                with suppress(self._library.TSS2_Exception):  # it may be gone
                    self._esapi.flush_context(self._ak[0])
                self._ak = None
            self._esapi.close()

    def __enter__(self) -> Tpm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ak_public(self) -> bytes:
        """The attestation key's public area, a TPMT_PUBLIC."""
        with self._asking("make the attestation key"):
            return self._attestation_key()[1]

    def endorsement_key(self) -> EndorsementKey:
        """The endorsement key that has a certificate in the TPM; if none has one, the first kind's."""
        with self._asking("read the endorsement key"):
            kind, certificate = self._certified()
            handle, public = self._endorsement_key(kind)
            self._esapi.flush_context(handle)
            return EndorsementKey(public, certificate)

    def enrolment_request(self, above: Sequence[VendorCertificate] = ()) -> EnrolmentRequest:
        """What a verifier wants to see before it enrols this TPM.

        Args:
            above: the certificates between the endorsement key's own and the maker's root.

        Raises:
            UnsupportedPlatformError: the TPM holds no certificate. Some makers only publish them.
        """
        ek = self.endorsement_key()
        if ek.certificate is None:
            raise UnsupportedPlatformError(
                "tpm: holds no certificate of its endorsement key",
                hint="ask its maker for one, and make the EnrolmentRequest with it",
            )
        return EnrolmentRequest(Endorsements((VendorCertificate(ek.certificate), *above)), ek.public, self.ak_public())

    def answer(self, challenge: Challenge) -> bytes:
        """The secret in a challenge for the endorsement key and the attestation key of this very TPM."""
        types = self._library
        with self._asking("activate the credential"):
            handle, public = self._endorsement_key(self._certified()[0])
            try:
                with self._endorsement_session(public) as session:
                    secret = self._esapi.activate_credential(
                        self._attestation_key()[0],
                        handle,
                        types.TPM2B_ID_OBJECT(challenge.credential),
                        types.TPM2B_ENCRYPTED_SECRET(challenge.seed),
                        session1=types.ESYS_TR.PASSWORD,
                        session2=session,
                    )
            finally:
                self._esapi.flush_context(handle)
            return bytes(secret)

    def extend(self, index: int, value: bytes, *, bank: str = "sha256") -> None:
        """Extend a register by a digest: it becomes the digest of itself and `value`, in that bank alone."""
        self.extend_banks(index, {bank: value})

    def extend_banks(self, index: int, values: Mapping[str, bytes]) -> None:
        """Extend a register by a digest for each of these banks, at once.

        Raises:
            UnsupportedPlatformError: this library knows no such bank.
        """
        types = self._library
        with self._asking(f"extend PCR {index}"):
            digests = []
            for bank, value in values.items():
                if bank not in _EXTENDABLE:
                    raise UnsupportedPlatformError(
                        f"tpm: cannot extend bank {bank}", hint="turn that bank off in the firmware's set-up"
                    )
                algorithm = getattr(types.TPM2_ALG, bank.upper())
                digests.append(types.TPMT_HA(hashAlg=algorithm, digest=types.TPMU_HA(**{bank: value})))
            self._esapi.pcr_extend(types.ESYS_TR(index), types.TPML_DIGEST_VALUES(digests))

    def pcrs(self, bank: str, indices: Sequence[int]) -> dict[int, bytes]:
        """The values of these registers. Raises UnsupportedPlatformError if the TPM does not keep that bank."""
        values: dict[int, bytes] = {}
        with self._asking(f"read its registers in bank {bank}"):
            while left := [index for index in indices if index not in values]:
                # A TPM gives out eight at most, and says which.
                _, selection, digests = self._esapi.pcr_read(_selection(bank, left[:8]))
                given = [index for index in left if _selects(selection, index)]
                if not given or len(given) != digests.count:
                    raise UnsupportedPlatformError(
                        f"tpm: has no bank {bank}", hint="turn it on in the firmware's set-up: the TPM's PCR banks"
                    )
                values |= dict(zip(given, map(bytes, digests), strict=True))
        return values

    def quote(self, bank: str, indices: Sequence[int], extra_data: bytes) -> tuple[bytes, bytes]:
        """A quote of these registers over `extra_data`: TPMS_ATTEST, and a TPMT_SIGNATURE by the attestation key."""
        with self._asking("quote"):
            message, signature = self._esapi.quote(
                self._attestation_key()[0], _selection(bank, indices), self._library.TPM2B_DATA(extra_data)
            )
            return bytes(message), signature.marshal()

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (self._library.TSS2_Exception, ValueError) as error:
                raise EnclaveError(f"tpm: cannot {what}: {error}") from None

    def _attestation_key(self) -> tuple[Any, bytes]:
        if self._ak is None:
            types = self._library
            template = types.TPM2B_PUBLIC.parse(_AK_TEMPLATE, objectAttributes=types.TPMA_OBJECT.parse(_AK_ATTRIBUTES))
            self._ak = self._primary(template)
        return self._ak

    def _endorsement_key(self, kind: str) -> tuple[Any, bytes]:
        _, template = self._library.utils.create_ek_template(kind, self._read)
        return self._primary(template)

    def _primary(self, template: Any) -> tuple[Any, bytes]:
        handle, public, *_ = self._esapi.create_primary(
            None, template, primary_handle=self._library.ESYS_TR.RH_ENDORSEMENT
        )
        return handle, public.publicArea.marshal()

    def _certified(self) -> tuple[str, bytes | None]:
        """The first kind of endorsement key with a certificate, and that."""
        for kind in self._kinds:
            lookup = self._library.utils.ek_template.lookup(kind)
            try:
                raw = self._read(lookup.cert_index)
            except self._library.utils.NoSuchIndex:
                continue
            return kind, _certificate(raw)
        return self._kinds[0], None

    def _read(self, index: int) -> bytes:
        raw: bytes = self._library.utils.NVReadEK(self._esapi)(index)
        return raw

    @contextmanager
    def _endorsement_session(self, public: bytes) -> Iterator[Any]:
        """What authorises the use of the endorsement key: PolicySecret of its hierarchy, or its own empty password."""
        types = self._library
        if int.from_bytes(public[4:8], "big") & types.TPMA_OBJECT.USERWITHAUTH:
            yield types.ESYS_TR.PASSWORD
            return
        session = self._esapi.start_auth_session(
            types.ESYS_TR.NONE, types.ESYS_TR.NONE, types.TPM2_SE.POLICY, "null", types.TPM2_ALG.SHA256
        )
        try:
            self._esapi.policy_secret(types.ESYS_TR.RH_ENDORSEMENT, session)
            yield session
        finally:
            self._esapi.flush_context(session)


@dataclass(frozen=True)
class TpmAttester:
    """Makes evidence of kind `tpm`.

    Attributes:
        tpm: opened.
        endorsements: the certificate of its attestation key and those above it, where enrolling gave it one.
        bank: whose registers to quote.
        pcrs: which of them.
        event_log: to show with them, from `read_event_log`; empty to show none. Where it does not replay to them, as
            after something extended one without logging it, it is left out: verifiers refuse such a log.
    """

    tpm: Tpm
    endorsements: Endorsements = field(default_factory=Endorsements)
    bank: str = "sha256"
    pcrs: tuple[int, ...] = BOOT_PCRS
    event_log: bytes = field(default=b"", repr=False)
    tee: str = field(default="tpm", init=False)

    def evidence(self, report_data: bytes) -> Evidence:
        """Evidence over the SHA-256 of `report_data`, for which alone a TPM has room.

        Raises:
            UsageError: it has not 64 bytes.
            EnclaveError: the TPM refuses, or its registers change too fast to be quoted.
        """
        if len(report_data) != REPORT_DATA_SIZE:
            raise UsageError(f"report data: {len(report_data)} bytes, wanted {REPORT_DATA_SIZE}")
        for _ in range(_ATTEMPTS):
            values: Mapping[str, Mapping[int, bytes]] = {self.bank: self.tpm.pcrs(self.bank, self.pcrs)}
            message, signature = self.tpm.quote(self.bank, self.pcrs, bound_data("tpm", report_data))
            try:
                check_pcrs(parse_quote(message), values)
            except VerificationError:
                continue
            log = self._log(values[self.bank])
            shown = TpmEvidence(message, signature, values, self.tpm.ak_public(), event_log=log)
            return Evidence("tpm", shown.to_bytes(), self.endorsements.to_bytes())
        raise EnclaveError(
            f"tpm: its registers changed in each of {_ATTEMPTS} attempts", hint="quote registers of the boot only"
        )

    def _log(self, pcrs: Mapping[int, bytes]) -> bytes:
        try:
            check_event_log(self.event_log, self.bank, pcrs)
        except (FormatError, VerificationError):
            return b""
        return self.event_log


def tpm_name() -> str:
    """Which TPM is opened if nothing else is said."""
    return os.environ.get(VARIABLE) or DEFAULT


def event_log_path() -> Path | None:
    """Where the firmware's log of the TPM lies that `Tpm.open` opens; None if nobody has said, of another than the
    machine's own."""
    if named := os.environ.get(LOG_VARIABLE):
        return Path(named)
    return EVENT_LOG if tpm_name() in (DEFAULT, DEFAULT.removeprefix("device:")) else None


def read_event_log(path: Path = EVENT_LOG) -> bytes:
    """The firmware's event log, as Linux keeps it, for its root alone.

    Raises:
        UnsupportedPlatformError: there is none, it cannot be read, or it is larger than evidence may be.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_EVENT_LOG + 1)
    except OSError as error:
        raise UnsupportedPlatformError(f"event log: {path}: {(error.strerror or str(error)).lower()}") from None
    if not 0 < len(raw) <= MAX_EVENT_LOG:
        raise UnsupportedPlatformError(f"event log: {path}: wanted 1 to {MAX_EVENT_LOG} bytes")
    return raw


def _library() -> Any:
    # The libraries under it write to the standard error output whatever fails, beside raising it.
    os.environ.setdefault("TSS2_LOG", "all+none")
    keep_to_their_own("libtss2-mu.so.0", "libtss2-sys.so.1", "libtss2-esys.so.0")
    try:
        library = importlib.import_module("tpm2_pytss")
        importlib.import_module("tpm2_pytss.utils")
    except (ImportError, OSError, RuntimeError, NotImplementedError) as error:
        raise MissingDependencyError(
            f"tpm2-pytss: {' '.join(str(error).split())[:200]}",
            hint='install libtss2-dev, or what your system calls it, then pip install "strongroom[tpm]"',
        ) from None
    return library


def _selection(bank: str, indices: Sequence[int]) -> str:
    if not indices or any(not 0 <= index < 24 for index in indices):
        raise UsageError(f"pcrs: got {list(indices)[:32]}, wanted some of 0 to 23")
    return f"{bank}:{','.join(map(str, sorted(set(indices))))}"


def _selects(selection: Any, index: int) -> bool:
    return any(
        bytes(each.pcrSelect)[index // 8] >> index % 8 & 1 for each in selection if each.sizeofSelect > index // 8
    )


def _certificate(raw: bytes) -> bytes | None:
    """The certificate at the start of a non-volatile index, which may be longer: its DER says how long it is."""
    if len(raw) < 4 or raw[:2] != b"\x30\x82":
        return None
    end = 4 + int.from_bytes(raw[2:4], "big")
    return raw[:end] if end <= min(len(raw), _MAX_CERTIFICATE) else None
