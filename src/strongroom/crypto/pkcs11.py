"""Signature keys that a token keeps: smart cards, USB keys, HSMs, SoftHSM, by PKCS #11.

The key is named by a URI of RFC 7512, ``pkcs11:token=NAME;object=NAME?module-path=FILE&pin-source=file:FILE``. What
signs is the token (CKM_ECDSA of a SHA-256 digest, PKCS #11 3.0, section 2.3.6); the key never leaves it.

Rules:

- A URI is read strictly: an attribute that is not known, appears twice or is badly encoded is refused, and so is a URI
  that fits two keys. Nothing is guessed.
- The PIN comes from a file or from ``STRONGROOM_PKCS11_PIN``, never from the URI, and is in no message.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from strongroom.crypto.derive import digest
from strongroom.crypto.keys import SIGNATURE_SIZE, PublicKey
from strongroom.crypto.linking import keep_to_their_own
from strongroom.errors import (
    CasError,
    FormatError,
    LockedError,
    MissingDependencyError,
    UnauthorizedError,
    UsageError,
    printable,
)

PIN_VARIABLE = "STRONGROOM_PKCS11_PIN"
_SCHEME = "pkcs11:"
_PATH = ("token", "manufacturer", "serial", "model", "object", "id", "type", "slot-id")
_QUERY = ("module-path", "pin-source")
_REFUSED = {"pin-value": "a PIN on the command line is seen by others: pin-source=file:FILE names a file of it"}
# RFC 7512, section 2.3: pk11-pchar and pk11-qchar, and percent-encoding.
_VALUE = re.compile(r"(?:[A-Za-z0-9._~:\[\]@!$'()*+,=/?|&-]|%[0-9A-Fa-f]{2})*")
_MAX_URI = 4096
_MAX_PIN = 256
# SEC 1, 2.3.4, in the DER OCTET STRING in which PKCS #11 wraps it: CKA_EC_POINT of a key on P-256.
_POINT, _WRAPPED = b"\x04", b"\x04\x41"
# RFC 5480: SubjectPublicKeyInfo of an uncompressed point on P-256, up to the point.
_SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
_P256 = bytes.fromhex("06082a8648ce3d030107")  # its OID, in DER


@dataclass(frozen=True)
class Pkcs11Uri:
    """A key's name. What is None fits any.

    Attributes:
        module: the path of the token's library.
        pin_file: of its PIN; None takes the environment's.
    """

    module: str
    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    label: str | None = None
    identifier: bytes | None = None
    slot: int | None = None
    pin_file: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Pkcs11Uri:
        """Raises UsageError unless `text` is a URI that names a key and a module."""
        if not text.startswith(_SCHEME) or len(text) > _MAX_URI:
            raise UsageError(f"key: got {printable(text[:80])!r}, wanted pkcs11:token=...;object=...?module-path=...")
        path, _, query = text.removeprefix(_SCHEME).partition("?")
        found = _attributes(path, ";", _PATH) | _attributes(query, "&", _QUERY)
        if found.get("type", b"private") != b"private":
            raise UsageError("key: pkcs11 type, wanted private: what signs is a private key")
        module, pin = found.get("module-path"), found.get("pin-source")
        if not module:
            raise UsageError("key: the pkcs11 URI says no module-path", hint="add ?module-path=/.../libsofthsm2.so")
        if "object" not in found and "id" not in found:
            raise UsageError("key: the pkcs11 URI names no key", hint="add ;object=LABEL or ;id=%01")
        slot = found.get("slot-id")
        if slot is not None and not re.fullmatch(rb"[0-9]{1,9}", slot):
            raise UsageError("key: pkcs11 slot-id, wanted a number")
        return cls(
            module=_text("module-path", module),
            token=_optional("token", found),
            manufacturer=_optional("manufacturer", found),
            serial=_optional("serial", found),
            model=_optional("model", found),
            label=_optional("object", found),
            identifier=found.get("id"),
            slot=None if slot is None else int(slot),
            pin_file=None if pin is None else _pin_file(_text("pin-source", pin)),
        )

    @property
    def shown(self) -> str:
        """For messages."""
        label = self.label if self.label is not None else (self.identifier or b"").hex()
        return printable(f"{self.token or 'any token'}/{label}")

    def pin(self) -> str:
        """The token's PIN.

        Raises:
            UsageError: there is none.
        """
        if self.pin_file is not None:
            try:
                with self.pin_file.open("rb") as file:
                    raw = file.read(_MAX_PIN + 2)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise UsageError(f"pin-source: {self.pin_file}: {reason}") from None
            raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        else:
            raw = os.environ.get(PIN_VARIABLE, "").encode("utf-8", "surrogateescape")
        try:
            pin = raw.decode()
        except UnicodeDecodeError:
            pin = ""
        if not pin or len(raw) > _MAX_PIN:
            raise UsageError(
                f"PIN of {self.shown}: is missing, or no text of at most {_MAX_PIN} bytes",
                hint=f"&pin-source=file:FILE in the URI names a file of it, or {PIN_VARIABLE} has it",
            )
        return pin


class Pkcs11Key:
    """A P-256 key in a token, logged in. Signs like a `SigningKey`; the private key cannot be had.

    Raises:
        MissingDependencyError: the extra `pkcs11`, or the module, is not installed.
        UnauthorizedError: the PIN is wrong.
        LockedError: the token lets nobody in, after wrong PINs or because it is in use.
        UsageError: no such token or key, or several.
        FormatError: the key is none on P-256.
        CasError: the token failed.
    """

    def __init__(self, uri: Pkcs11Uri) -> None:
        self._pkcs11 = pkcs11 = _library()
        self._uri = uri
        token = _token(pkcs11, uri)
        pin = uri.pin()
        try:
            self._session = _session(pkcs11, token, pin)
        except Exception as error:
            raise _failed(pkcs11, uri, error) from None
        try:
            self._key = self._find(pkcs11.ObjectClass.PRIVATE_KEY)
            self.public = self._public()
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, text: str) -> Pkcs11Key:
        """The key that a URI names."""
        return cls(Pkcs11Uri.parse(text))

    @classmethod
    def generate(cls, text: str) -> Pkcs11Key:
        """Make a key of that name in the token, and open it.

        Raises:
            UsageError: there is one of that name.
        """
        uri, pkcs11 = Pkcs11Uri.parse(text), _library()
        from pkcs11.util.ec import encode_named_curve_parameters

        token, pin = _token(pkcs11, uri), uri.pin()
        try:
            with _session(pkcs11, token, pin, rw=True) as session:
                if list(session.get_objects(_template(pkcs11, uri, pkcs11.ObjectClass.PRIVATE_KEY))):
                    raise UsageError(f"key: {uri.shown} exists already", hint="choose another object name")
                parameters = session.create_domain_parameters(
                    pkcs11.KeyType.EC,
                    {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
                    local=True,
                )
                parameters.generate_keypair(
                    store=True,
                    label=uri.label,
                    id=uri.identifier or digest(str(uri.label).encode())[:8],
                    capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
                )
        except UsageError:
            raise
        except Exception as error:
            raise _failed(pkcs11, uri, error) from None
        return cls(uri)

    def sign(self, message: bytes) -> bytes:
        """The raw signature, r || s, 64 bytes big-endian, checked under the public key before it is given out."""
        try:
            signature = bytes(self._key.sign(digest(message), mechanism=self._pkcs11.Mechanism.ECDSA))
        except Exception as error:
            raise _failed(self._pkcs11, self._uri, error) from None
        if len(signature) != SIGNATURE_SIZE:
            raise FormatError(f"key: {self._uri.shown} gave a signature of {len(signature)} bytes")
        self.public.verify(signature, message)
        return signature

    def close(self) -> None:
        """Log out."""
        with suppress(Exception):  # the token is gone already
            self._session.close()

    def _find(self, kind: Any) -> Any:
        try:
            found = list(self._session.get_objects(_template(self._pkcs11, self._uri, kind)))
        except Exception as error:
            raise _failed(self._pkcs11, self._uri, error) from None
        if len(found) != 1:
            what = "no key" if not found else f"{len(found)} keys"
            raise UsageError(
                f"key: the token has {what} of the name {self._uri.shown}",
                hint="object= is its label and id= its identifier; `pkcs11-tool --list-objects` shows them",
            )
        return found[0]

    def _public(self) -> PublicKey:
        """The public key, which lies beside the private one; a token gives no other way to have it."""
        attribute = self._pkcs11.Attribute
        point = b""
        for holder in (self._key, None):
            try:
                holder = holder or self._find(self._pkcs11.ObjectClass.PUBLIC_KEY)
                curve, point = bytes(holder[attribute.EC_PARAMS]), bytes(holder[attribute.EC_POINT])
                break
            except (UsageError, self._pkcs11.exceptions.PKCS11Error):
                continue
        else:
            raise UsageError(
                f"key: the token has no public key of the name {self._uri.shown}",
                hint="store it beside the private key, under the same label and id",
            )
        if point.startswith(_WRAPPED):
            point = point[2:]
        if curve != _P256 or len(point) != 65 or not point.startswith(_POINT):
            raise FormatError(f"key: {self._uri.shown} is no elliptic-curve key on P-256")
        return PublicKey(_SPKI + point)

    def __repr__(self) -> str:
        return f"Pkcs11Key({self.public.fingerprint})"


def _attributes(text: str, separator: str, known: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in text.split(separator) if text else ():
        name, equals, value = part.partition("=")
        if name in _REFUSED:
            raise UsageError(f"key: pkcs11 {name} is not taken", hint=_REFUSED[name])
        if name not in known or not equals or not _VALUE.fullmatch(value):
            raise UsageError(
                f"key: pkcs11 URI, got {printable(name[:40])!r}, wanted {', '.join(known)}, each with a value"
            )
        if name in found:
            raise UsageError(f"key: pkcs11 URI, {name} appears twice")
        found[name] = unquote_to_bytes(value)
    return found


def _text(name: str, raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UsageError(f"key: pkcs11 {name} is no text")
    return text


def _optional(name: str, found: dict[str, bytes]) -> str | None:
    return _text(name, found[name]) if name in found else None


def _pin_file(source: str) -> Path:
    path = source.removeprefix("file:").removeprefix("//")
    if not path.startswith("/") and not source.startswith("file:"):
        raise UsageError("key: pkcs11 pin-source, wanted file:FILE", hint="commands, other schemes are not run")
    return Path(path)


def _library() -> Any:
    try:
        import pkcs11
    except ImportError:
        raise MissingDependencyError(
            "python-pkcs11: is not installed, and a pkcs11: key needs it", hint="pip install 'strongroom[pkcs11]'"
        ) from None
    return pkcs11


def _token(pkcs11: Any, uri: Pkcs11Uri) -> Any:
    """The one token that the URI fits."""
    try:
        keep_to_their_own(uri.module)
        library = pkcs11.lib(uri.module)
    except Exception:
        raise MissingDependencyError(
            f"pkcs11 module: {printable(uri.module)} cannot be loaded",
            hint="module-path is the token's library: libsofthsm2.so, opensc-pkcs11.so, libykcs11.so",
        ) from None
    found = []
    try:
        for slot in library.get_slots(token_present=True):
            token = slot.get_token()
            said = (token.label, token.manufacturer_id, token.model, _ascii(token.serial))
            wanted = (uri.token, uri.manufacturer, uri.model, uri.serial)
            fits = all(want in (None, str(got).strip()) for got, want in zip(said, wanted, strict=True))
            if fits and uri.slot in (None, slot.slot_id):
                found.append(token)
    except Exception as error:
        raise _failed(pkcs11, uri, error) from None
    if len(found) != 1:
        what = "no token" if not found else f"{len(found)} tokens"
        raise UsageError(
            f"key: the module has {what} of the name {printable(uri.token or 'any')}",
            hint="token= is its label; `pkcs11-tool --list-slots` shows them; serial= tells two of one name apart",
        )
    return found[0]


def _session(pkcs11: Any, token: Any, pin: str, *, rw: bool = False) -> Any:
    """A session. A login is of the whole process: where another key of this token is open it stands already."""
    try:
        return token.open(rw=rw, user_pin=pin)
    except pkcs11.exceptions.UserAlreadyLoggedIn:
        return token.open(rw=rw)


def _ascii(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _template(pkcs11: Any, uri: Pkcs11Uri, kind: Any) -> dict[Any, Any]:
    template = {pkcs11.Attribute.CLASS: kind, pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.EC}
    if uri.label is not None:
        template[pkcs11.Attribute.LABEL] = uri.label
    if uri.identifier is not None:
        template[pkcs11.Attribute.ID] = uri.identifier
    return template


def _failed(pkcs11: Any, uri: Pkcs11Uri, error: Exception) -> Exception:
    """What a token's error means, in this tree. None of them says the PIN."""
    kinds = pkcs11.exceptions
    if isinstance(error, (kinds.PinIncorrect, kinds.PinInvalid, kinds.PinLenRange)):
        return UnauthorizedError(
            f"PIN of {uri.shown}: is wrong", hint="a token locks itself after some wrong ones: look before trying again"
        )
    if isinstance(error, kinds.PinLocked):
        return LockedError(
            f"token {uri.shown}: is locked after too many wrong PINs", hint="its security officer unlocks it"
        )
    if isinstance(error, kinds.PinExpired):
        return UnauthorizedError(f"PIN of {uri.shown}: has expired", hint="set a new one with the token's tool")
    if isinstance(error, (kinds.SessionCount, kinds.TokenNotRecognised, kinds.DeviceRemoved)):
        return LockedError(f"token {uri.shown}: is in use, or was taken away", hint="put it in, and try again")
    return CasError(f"token {uri.shown}: failed: {type(error).__name__}", hint="its own tool may say more: pkcs11-tool")
