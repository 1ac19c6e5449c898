"""Asking for a passphrase: on the terminal, or from a descriptor. Never from an argument or the environment.

Other processes of the machine can read both of those; a descriptor only its owner hands on.
"""

from __future__ import annotations

import getpass
import os
import warnings

from strongroom.errors import UsageError
from strongroom.vault.keys.holders import MAX_PASSPHRASE

_FD_HINT = "pass it through a descriptor"


def read_passphrase(prompt: str, fd: int | None = None, *, confirm: bool = False) -> str:
    """A passphrase, as `Passphrase` takes it.

    Args:
        prompt: what the terminal shows; it says whose passphrase is wanted.
        fd: read a line from this descriptor instead: up to the newline, which is dropped (``\\r\\n`` too), or up to the
            end. Nothing after the newline is taken, so that a descriptor can hold several; it stays open.
        confirm: on the terminal, ask twice. For a passphrase that is new.

    Raises:
        UsageError: there is no terminal to read from without echo; it is empty, longer than 1024 bytes, or no UTF-8;
            the two differ. The message holds nothing of it.
    """
    if fd is not None:
        return _from_descriptor(fd)
    text = _from_terminal(prompt)
    if confirm and text != _from_terminal("again, " + prompt):
        raise UsageError("passphrase: the two differ")
    return _checked(text)


def _from_terminal(prompt: str) -> str:
    with warnings.catch_warnings():
        # getpass only warns before it reads with echo.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(prompt)
        except (getpass.GetPassWarning, EOFError, OSError):
            pass
    raise UsageError("passphrase: there is no terminal to read it from without echo", hint=_FD_HINT)


def _from_descriptor(fd: int) -> str:
    # Byte by byte: whatever follows the newline belongs to somebody else.
    line = bytearray()
    try:
        while (byte := os.read(fd, 1)) not in (b"", b"\n"):
            line += byte
            if len(line) > MAX_PASSPHRASE + 1:
                break
    except OSError as error:
        raise UsageError(f"passphrase: descriptor {fd}: {error.strerror}") from None
    if byte == b"\n" and line.endswith(b"\r"):
        del line[-1]
    # An exception of the decoder's would hold what it could not decode; surrogates stand for that, and are refused.
    return _checked(bytes(line).decode("utf-8", "surrogateescape"))


def _checked(text: str) -> str:
    if not text:
        raise UsageError("passphrase: is empty")
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > MAX_PASSPHRASE:
        raise UsageError(f"passphrase: more than {MAX_PASSPHRASE} bytes")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError("passphrase: is not UTF-8")
    return text
