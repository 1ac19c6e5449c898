"""A small value in a TPM's non-volatile memory, that only who knows a password writes and reads.

Source: Trusted Computing Group, "TPM 2.0 Library, part 1: Architecture", revision 1.59: sections 16 (Names), 19.6
(session-based authorisations) and 37 (NV memory). Both directions go through an HMAC session whose key is the password:
so neither the TPM's driver nor whoever sits on its bus can answer in its place, or replay an answer. Whoever owns the
TPM's owner hierarchy can remove the index, and make another under the same number, but not under the same password.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from strongroom.attest.tee.tpm import Tpm
from strongroom.attest.tee.tpm_seal import _session, _storage_key
from strongroom.errors import EnclaveError, UnsupportedPlatformError, UsageError, WrongKeyError

_ATTRIBUTES = "authread|authwrite|no_da"


def define(tpm: Tpm, index: int, size: int, password: bytes) -> None:
    """Make an index of so many bytes; it holds nothing yet.

    Raises:
        UsageError: there is one of that number.
        EnclaveError: the TPM refuses, as where its owner hierarchy has a password.
    """
    esapi, types = tpm._esapi, tpm._library
    public = types.TPMS_NV_PUBLIC(
        nvIndex=index,
        nameAlg=types.TPM2_ALG.SHA256,
        attributes=types.TPMA_NV.parse(_ATTRIBUTES),
        dataSize=size,
    )
    with _refusals(tpm, index, "make"), _storage_key(tpm) as parent:
        with _session(tpm, parent, types.TPM2_SE.HMAC) as session:
            esapi.trsess_set_attributes(session, types.TPMA_SESSION.DECRYPT | types.TPMA_SESSION.CONTINUESESSION)
            handle = esapi.nv_define_space(password, types.TPM2B_NV_PUBLIC(nvPublic=public), session2=session)
        esapi.tr_close(handle)


def name(tpm: Tpm, index: int) -> bytes | None:
    """The Name of an index: the digest of what it is, and whether it was ever written. None if there is none."""
    with _refusals(tpm, index, "look at"), _handle(tpm, index) as handle:
        if handle is None:
            return None
        _, found = tpm._esapi.nv_read_public(handle)
        return bytes(found)


def write(tpm: Tpm, index: int, password: bytes, value: bytes) -> None:
    """Raises WrongKeyError if the password is another, UnsupportedPlatformError if there is no such index."""
    with _refusals(tpm, index, "write"), _opened(tpm, index, password) as (handle, session):
        tpm._esapi.nv_write(handle, value, auth_handle=handle, session1=session)


def read(tpm: Tpm, index: int, password: bytes, size: int) -> bytes:
    """Raises WrongKeyError if the password is another, UnsupportedPlatformError if there is no such index."""
    with _refusals(tpm, index, "read"), _opened(tpm, index, password) as (handle, session):
        return bytes(tpm._esapi.nv_read(handle, size, auth_handle=handle, session1=session))


@contextmanager
def _opened(tpm: Tpm, index: int, password: bytes) -> Iterator[tuple[Any, Any]]:
    esapi, types = tpm._esapi, tpm._library
    with _handle(tpm, index) as handle:
        if handle is None:
            raise UnsupportedPlatformError(
                f"tpm: has no index {index:#x}", hint="the TPM was cleared, or it is another machine's"
            )
        esapi.tr_set_auth(handle, password)
        with _storage_key(tpm) as parent, _session(tpm, parent, types.TPM2_SE.HMAC) as session:
            yield handle, session


@contextmanager
def _handle(tpm: Tpm, index: int) -> Iterator[Any]:
    esapi, types = tpm._esapi, tpm._library
    try:
        handle = esapi.tr_from_tpmpublic(index)
    except types.TSS2_Exception as error:
        if error.error != types.TPM2_RC.HANDLE:
            raise
        yield None
        return
    try:
        yield handle
    finally:
        esapi.tr_close(handle)


@contextmanager
def _refusals(tpm: Tpm, index: int, what: str) -> Iterator[None]:
    types = tpm._library
    codes = types.TPM2_RC
    with tpm._lock:
        try:
            yield
        except types.TSS2_Exception as error:
            if error.error in (codes.AUTH_FAIL, codes.BAD_AUTH) and what != "make":
                raise WrongKeyError(
                    f"tpm: index {index:#x} was made under another password", hint="somebody else made it anew"
                ) from None
            if error.rc == codes.NV_DEFINED:
                raise UsageError(f"tpm: index {index:#x} is in use", hint="choose another: --tpm-index") from None
            raise EnclaveError(f"tpm: cannot {what} index {index:#x}: {error}") from None
        except ValueError as error:
            raise EnclaveError(f"tpm: cannot {what} index {index:#x}: {error}") from None
