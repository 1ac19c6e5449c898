"""Small secrets that a TPM gives back only while its registers are what they were, and to who knows a PIN.

Source: Trusted Computing Group, "TPM 2.0 Library, part 1: Architecture", revision 1.59: sections 19.7 (policies:
TPM2_PolicyPCR, TPM2_PolicyAuthValue), 19.8 (dictionary attacks) and 21 (session-based encryption). A sealed object lies
under a storage key of the owner's hierarchy, which the TPM makes anew from its seed whenever it is asked; so clearing
the TPM, which changes that seed, ends every object for good. The secret is encrypted on its way between TPM and
processor under a session that is salted with that storage key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from strongroom.attest.tee.tpm import Tpm, _selection
from strongroom.errors import EnclaveError, LockedError, TamperedError, UnsupportedPlatformError, WrongKeyError

MAX_SECRET = 128  # TPM 2.0 part 2, section 11.1.14: MAX_SYM_DATA
_STORAGE = "ecc_nist_p256:aes128cfb"
_STORAGE_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
_CHANGED = (
    "firmware, boot loader or Secure Boot changed: boot what was there before, or recover the secret in another way "
    "and seal it anew"
)


@dataclass(frozen=True)
class Sealed:
    """An object as its TPM loads it: TPMT_PUBLIC and TPM2B_PRIVATE's buffer, and which registers it asks for."""

    public: bytes = field(repr=False)
    private: bytes = field(repr=False)
    bank: str
    pcrs: tuple[int, ...]
    pin: bool


def seal(tpm: Tpm, secret: bytes, *, bank: str, pcrs: Sequence[int], pin: bytes = b"") -> Sealed:
    """Seal a secret of at most 128 bytes to the values that these registers have now.

    Args:
        pin: asked for besides, if it is not empty; the TPM locks itself after too many wrong ones.

    Raises:
        EnclaveError: the TPM refuses.
        UsageError: there are no such registers.
        UnsupportedPlatformError: it does not keep that bank.
    """
    tpm.pcrs(bank, pcrs)  # a bank that is not kept would seal to nothing
    esapi, types = tpm._esapi, tpm._library
    with _refusals(tpm, "seal"), _storage_key(tpm) as parent:
        with _session(tpm, parent, types.TPM2_SE.TRIAL) as trial:
            policy = _policy(tpm, trial, bank, pcrs, with_pin=bool(pin))
        attributes = "fixedtpm|fixedparent" if pin else "fixedtpm|fixedparent|noda"
        public = types.TPM2B_PUBLIC.parse(
            "keyedhash", objectAttributes=types.TPMA_OBJECT.parse(attributes), authPolicy=policy
        )
        sensitive = types.TPM2B_SENSITIVE_CREATE(types.TPMS_SENSITIVE_CREATE(userAuth=pin, data=secret))
        with _session(tpm, parent, types.TPM2_SE.HMAC) as session:
            esapi.trsess_set_attributes(session, types.TPMA_SESSION.DECRYPT | types.TPMA_SESSION.CONTINUESESSION)
            private, made, *_ = esapi.create(parent, sensitive, public, session2=session)
        return Sealed(made.publicArea.marshal(), bytes(private), bank, tuple(sorted(set(pcrs))), bool(pin))


def unseal(tpm: Tpm, sealed: Sealed, *, pin: bytes = b"") -> bytes:
    """The secret.

    Raises:
        WrongKeyError: the registers have other values, the PIN is another, or the TPM is, or was cleared.
        LockedError: the TPM has locked itself after too many wrong PINs.
        TamperedError: the object was changed.
        EnclaveError: the TPM refuses otherwise.
    """
    esapi, types = tpm._esapi, tpm._library
    try:
        area, _ = types.TPMT_PUBLIC.unmarshal(sealed.public)
        public, private = types.TPM2B_PUBLIC(publicArea=area), types.TPM2B_PRIVATE(sealed.private)
    except (types.TSS2_Exception, ValueError, TypeError, IndexError):
        raise TamperedError("tpm: the sealed object does not parse") from None
    with _refusals(tpm, "unseal"), _storage_key(tpm) as parent:
        handle = esapi.load(parent, private, public)
        try:
            if sealed.pin:
                esapi.tr_set_auth(handle, pin)
            with _session(tpm, parent, types.TPM2_SE.POLICY) as session:
                _policy(tpm, session, sealed.bank, sealed.pcrs, with_pin=sealed.pin)
                esapi.trsess_set_attributes(session, types.TPMA_SESSION.ENCRYPT | types.TPMA_SESSION.CONTINUESESSION)
                return bytes(esapi.unseal(handle, session1=session))
        finally:
            esapi.flush_context(handle)


@contextmanager
def _storage_key(tpm: Tpm) -> Iterator[Any]:
    esapi, types = tpm._esapi, tpm._library
    attributes = types.TPMA_OBJECT.parse(_STORAGE_ATTRIBUTES)
    template = types.TPM2B_PUBLIC.parse(_STORAGE, objectAttributes=attributes)
    handle, *_ = esapi.create_primary(None, template, primary_handle=types.ESYS_TR.RH_OWNER)
    try:
        yield handle
    finally:
        esapi.flush_context(handle)


@contextmanager
def _session(tpm: Tpm, parent: Any, kind: Any) -> Iterator[Any]:
    """A session salted with the storage key, that can encrypt what goes over the bus."""
    esapi, types = tpm._esapi, tpm._library
    session = esapi.start_auth_session(parent, types.ESYS_TR.NONE, kind, "aes128cfb", types.TPM2_ALG.SHA256)
    try:
        yield session
    finally:
        esapi.flush_context(session)


def _policy(tpm: Tpm, session: Any, bank: str, pcrs: Sequence[int], *, with_pin: bool) -> Any:
    esapi = tpm._esapi
    esapi.policy_pcr(session, b"", _selection(bank, pcrs))
    if with_pin:
        esapi.policy_auth_value(session)
    return esapi.policy_get_digest(session)


@contextmanager
def _refusals(tpm: Tpm, what: str) -> Iterator[None]:
    types = tpm._library
    codes = types.TPM2_RC
    with tpm._lock:
        try:
            yield
        except types.TSS2_Exception as error:
            code = error.error
            if code in (codes.POLICY_FAIL, codes.PCR_CHANGED):
                raise WrongKeyError("tpm: its registers are not what they were", hint=_CHANGED) from None
            if code in (codes.AUTH_FAIL, codes.BAD_AUTH):
                raise WrongKeyError(
                    "tpm: the PIN is wrong, or the owner's hierarchy has a password",
                    hint="after a few wrong ones the TPM locks itself",
                ) from None
            if error.rc == codes.LOCKOUT:
                raise LockedError(
                    "tpm: has locked itself after too many wrong PINs",
                    hint="it counts one of them down in a while; tpm2_dictionarylockout resets it at once",
                ) from None
            if code in (codes.INTEGRITY, codes.HANDLE):
                raise WrongKeyError(
                    "tpm: this object is not of this TPM, or it was cleared since, or the object was changed",
                    hint="recover the secret in another way and seal it anew",
                ) from None
            if error.rc == codes.INITIALIZE:
                raise UnsupportedPlatformError("tpm: was not started by the firmware") from None
            raise EnclaveError(f"tpm: cannot {what}: {error}") from None
        except ValueError as error:
            raise EnclaveError(f"tpm: cannot {what}: {error}") from None
