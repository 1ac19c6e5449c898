"""TLS records to and from memory of the caller's.

pyOpenSSL takes new memory for each call and copies out of it, and a record has 16 KiB at the most: for a request of
some hundred KiB that is a fifth of what it costs a service. OpenSSL is asked here as pyOpenSSL asks it; whatever it
does not answer with bytes is pyOpenSSL's to judge.
"""

from __future__ import annotations

from typing import Any, Final

from OpenSSL import SSL

PLAIN_RECORD = 1 << 14  # the most that one TLS record holds

# What pyOpenSSL does not promise; without it, its own calls do.
_lib: Any = getattr(SSL, "_lib", None)
_from_buffer: Any = getattr(getattr(SSL, "_ffi", None), "from_buffer", None)
_DIRECT: Final = _lib is not None and _from_buffer is not None


def read_into(connection: SSL.Connection, out: memoryview) -> int:
    """Decrypt the next record, or what fits of it, into `out`; how many bytes.

    Raises:
        SSL.Error: as `SSL.Connection.recv` raises it.
    """
    tls = getattr(connection, "_ssl", None) if _DIRECT else None
    if tls is not None:
        count: int = _lib.SSL_read(tls, _from_buffer(out), min(len(out), PLAIN_RECORD))
        if count > 0:
            return count
    # There is nothing, or something is wrong: OpenSSL says so again.
    return connection.recv_into(out, PLAIN_RECORD)


def ciphertext_into(connection: SSL.Connection, out: memoryview) -> int:
    """Take what is to be sent, as much as fits into `out`; how many bytes, 0 if there is nothing."""
    bio = getattr(connection, "_from_ssl", None) if _DIRECT else None
    if bio is not None:
        return max(0, int(_lib.BIO_read(bio, _from_buffer(out), len(out))))
    try:
        data = connection.bio_read(len(out))
    except SSL.WantReadError:
        return 0
    out[: len(data)] = data
    return len(data)
